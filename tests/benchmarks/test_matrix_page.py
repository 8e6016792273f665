"""The page of results: made of rows alone."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import common, matrix, matrix_page

FIGURES = {"efficacy_gen": 0.9, "generalization_gen": 0.6, "specificity_gen": 0.45, "specificity": 0.5, "efficacy": 1.0,
           "score": 0.99, "log_perplexity": 3.25, "portability_gen": None}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(matrix_page, "PAGE", tmp_path / "docs" / "results.md")


def row(method: str, *, edits: int = 100, **more: Any) -> dict[str, Any]:
    origin = {
        "command": "RETCON_DATA=... python -m benchmarks 'matrix/counterfact_100_*'", "date": "2026-01-02T03:04:05",
        "data": {"files": [{"name": "counterfact_full.jsonl.gz", "sha256": "ab" * 32}], "sha256": "ab" * 32,
                 "cases_sha256": "cd" * 32, "licence": "MIT"},
        "text": {"sha256": "ef" * 32}, "versions": {"retcon": "0.1.0", "torch": "2.13.0"},
        "hardware": {"cpu": "A processor", "threads": 1, "accelerator": None},
        "model": {"name": "smollm2-135m", "fingerprint": "12" * 32, "dtype": "float32", "device": "cpu"},
    }  # fmt: skip
    return {
        "key": method, "row": f"{method}, counterfact", "method": method, "model": "smollm2-135m", "edits": edits,
        "dataset": "counterfact", "options": {"statistics": "wikitext2_valid.txt"}, "seed": 0, "mode": "batch",
        "chunk": None, "n": edits, "judged": edits, "metrics": FIGURES, "intervals": {"efficacy_gen": [0.8, 1.0]},
        "before": {**dict.fromkeys(FIGURES, 0.01), "specificity": 1.0, "log_perplexity": 3.0}, "before_intervals": {},
        "seconds_per_edit": 1.25, "targets_cached": 0, "peak_memory_mb": 1700.4, "provenance": origin, **more,
    }  # fmt: skip


def keep(table: str, *rows: dict[str, Any]) -> None:
    folder = matrix.TABLES[table].folder
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(one) + "\n" for one in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")


def timed(method: str, seconds: float) -> None:
    path = common.RESULTS / "methods" / f"timing_{method}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"figures": {"seconds_per_edit": seconds}}), encoding="utf-8")


def written() -> str:
    matrix_page.write()
    return matrix_page.PAGE.read_text(encoding="utf-8")


def lines(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]


def test_without_rows_there_is_no_page(tmp_path: Path) -> None:
    matrix_page.write()
    assert not (tmp_path / "docs").exists()


def test_a_table_has_free_running_figures_first_harms_beside_them_and_the_price() -> None:
    worse = {**FIGURES, "efficacy_gen": 1.0, "specificity_gen": 0.09, "log_perplexity": 4.5}
    keep("counterfact_100", row("memit", metrics=worse), row("rome"))
    timed("rome", 2.5)
    assert lines(written()) == [
        ["method", "efficacy_gen", "generalization_gen", "specificity_gen", "specificity", "log-perplexity change",
         "score_gen", "efficacy", "s an edit", "peak MB"],
        ["---"] * 10,
        ["*unedited*", "0.010", "0.010", "0.010", "1.000", "–", "0.010", "0.010", "–", "–"],
        ["rome", "0.900", "0.600", "0.450", "0.500", "0.250", "0.600", "1.000", "2.50", "1700"],
        ["memit", "1.000", "0.600", "0.090", "0.500", "1.500", "0.218", "1.000", "–", "1700"],
    ]  # fmt: skip


def test_rows_without_figures_stand_last_and_say_why() -> None:
    asked = {name: row("x")[name] for name in ("dataset", "edits", "seed", "mode", "chunk", "options", "model")}
    failed = asked | {"key": "a", "row": "memit", "method": "memit", "failed": "MemoryError: of | all"}
    cannot = asked | {"key": "b", "row": "ece", "method": "ece", "na": "n/a: ece: it has no subject"}
    keep("zsre_100", failed, cannot, row("lora", n=99))
    found = lines(written())
    assert found[0][-1] == "remark"
    assert [(line[0], line[1], line[-1]) for line in found[3:]] == [
        ("lora", "0.900", "99 facts, there are no more"),
        ("memit", "–", "failed: MemoryError: of / all"),
        ("ece", "–", "n/a: ece: it has no subject"),
    ]


def test_each_table_says_what_it_takes_to_measure_it_again() -> None:
    keep("counterfact_100", row("memit"), row("rome"))
    page = written()
    for part in (
        "## CounterFact, 100 facts",
        "- Command: `RETCON_DATA=... python -m benchmarks 'matrix/counterfact_100_*'`",
        "- Judged: 100 of 100 cases",
        f"- SHA-256: `counterfact_full.jsonl.gz` {('ab' * 8)}; cases {'cd' * 8}; text for perplexity {'ef' * 8}",
        "- Options, where a method has them: `statistics=wikitext2_valid.txt`",
        "- Seed: 0",
        f"- Model: smollm2-135m, fingerprint {'12' * 8}, float32, on cpu",
        "- Versions: retcon 0.1.0, torch 2.13.0",
        "- Machine: A processor, 1 thread",
        "- Measured: 2026-01-02",
    ):
        assert part in page.splitlines(), part
    assert "(../benchmarks/results/matrix/counterfact_100/rows.md)" in page
    assert "not all judged" not in page
    other = row("rome")
    other["provenance"]["data"]["cases_sha256"] = "00" * 32
    keep("counterfact_100", row("memit"), other)
    assert "**These rows were not all judged on the same cases**" in written()


def test_plots_lie_beside_the_page_and_every_link_leads_to_a_file(tmp_path: Path) -> None:
    keep("counterfact_100", row("memit"), row("rome", metrics={**FIGURES, "efficacy_gen": 0.95}))
    keep("counterfact_1000", row("memit", edits=1000))
    timed("memit", 1.0)
    timed("rome", 2.5)
    page = written()
    pictures = re.findall(r"!\[.*\]\((.*)\)", page)
    assert pictures == ["results/counterfact_100_harm.svg", "results/counterfact_100_time.svg"]
    for name in pictures:
        root = ElementTree.parse(matrix_page.PAGE.parent / name).getroot()
        assert root.tag.endswith("svg")
        titles = [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}title")]
        assert len(titles) == 2
    assert "rome: efficacy_gen 95%, neighbour answers changed 50%" in (tmp_path / "docs" / pictures[0]).read_text(
        "utf-8"
    )
    assert "Time against quality: score_gen over" in page
    assert page.index("## CounterFact, 100 facts") < page.index("## CounterFact, 1,000 facts")
