"""The page on judging an edit says what the code does."""

import re
from pathlib import Path

from retcon.evaluate.ability import TASKS, load
from retcon.evaluate.curve import FIGURES
from retcon.evaluate.generating import MOST_TOKENS, budget
from retcon.evaluate.prefixes import PASSAGES
from retcon.metrics import METRICS

PAGE = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")


def test_every_figure_has_its_line_in_the_order_of_the_reports() -> None:
    lines = [
        f"| `{name}` | {metric.meaning} | {metric.rule} | {metric.better} |".replace("||", "\\|\\|")
        for name, metric in METRICS.items()
    ]
    assert "\n".join(["|---|---|---|---|", *lines]) + "\n\n" in PAGE


def test_numbers_on_the_page_are_those_of_the_code() -> None:
    assert f"never\n  more than {MOST_TOKENS}:" in PAGE
    assert budget(1) == 2 * 1 + 8
    assert "8 tokens more than twice the longest accepted answer" in PAGE
    assert PASSAGES == 3
    assert "three passages" in PAGE
    for name in TASKS:
        assert re.search(rf"\| `{name}` \|.*; {len(load(name))} items", PAGE)


def test_what_can_be_followed_is_named() -> None:
    kinds = {"_gen", "", "_prob"}
    assert set(FIGURES) == {f"{base}{kind}" for base in ("efficacy", "generalization") for kind in kinds}
    for name in FIGURES[:3]:
        assert f"`{name}`" in PAGE
