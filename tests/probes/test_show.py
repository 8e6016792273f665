"""What people see: a table, Markdown, two files."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from retcon.lm import LM
from retcon.patch import Patch
from retcon.probes import Probed, Quantise, Relearn, probe
from retcon.probes.show import markdown, table, write
from retcon.requests import ForgetCase

NAMES = ["rephrase", "cloze", "quantise", "relearn_same", "detach"]


@pytest.fixture(name="found", scope="module")
def _found(
    lm: LM, suppressing: Patch, erasing: Patch, cases: list[ForgetCase], tmp_path_factory: pytest.TempPathFactory
) -> Probed:
    with pytest.MonkeyPatch.context() as patching:
        patching.setenv("RETCON_CACHE", str(tmp_path_factory.mktemp("cache")))
        settings = [Quantise(bits=(8,)), Relearn(steps=(1,))]
        return probe(lm, cases, patch=suppressing, twin=erasing, names=NAMES, settings=settings, max_new_tokens=12)


def test_the_terminal_shows_every_row_and_the_verdict(found: Probed) -> None:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as shown:
        console.print(table(found))
    text = shown.get()
    for name in NAMES:
        assert name in text
    assert "12 of 12 answers were known. Plainly asked," in text
    assert "Suppresses:" in text
    assert "n/a: the originals are not shipped with a merged model" in text


def test_markdown_has_the_verdict_first_a_row_each_and_the_curve(found: Probed) -> None:
    text = markdown(found)
    lines = text.splitlines()
    assert lines[2] == f"**{found.verdict()}**"
    rows = [line for line in lines if line.startswith(("| rephrase", "| cloze", "| quantise", "| relearn", "| detach"))]
    assert len(rows) == len(found) == 6
    widths = {line.count(" | ") for line in lines[lines.index(rows[0]) - 2 : lines.index(rows[-1]) + 1]}
    assert len(widths) == 1
    assert "| steps | 0 | 1 | area |" in text
    assert "over the twin's" in text


def test_files_are_written_and_hold_what_was_found(found: Probed, tmp_path: Path) -> None:
    paths = write(found, tmp_path / "new")
    assert [path.name for path in paths] == ["probes.json", "probes.md"]
    data = json.loads(paths[0].read_text())
    assert data["kind"] == found.kind == "suppresses"
    assert [result["name"] for result in data["results"]] == [result.name for result in found]
