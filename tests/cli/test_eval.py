"""`retcon eval`: one JSON object that begins as promised, and a report in a folder."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.cli.conftest import Retcon

from retcon.storage import file_sha256

METRICS = ["--metrics", "efficacy", "efficacy_prob,specificity"]


def test_json_begins_with_n_metrics_before_and_seconds(
    retcon: Retcon, model: str, edits: Path, patch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["retcon", "eval", "--cases", "my facts.jsonl"])  # a test worker has none
    said = retcon("eval", "--model", model, "--cases", edits, "--patch", patch, *METRICS, "--json")
    assert said.code == 0
    assert list(said.json)[:4] == ["n", "metrics", "before", "seconds"]
    assert list(said.json["metrics"]) == list(said.json["before"]) == ["efficacy", "efficacy_prob", "specificity"]
    assert said.json["metrics"]["efficacy_prob"] > said.json["before"]["efficacy_prob"]
    assert said.json["provenance"]["file"]["sha256"] == file_sha256(edits)
    assert said.json["provenance"]["command"] == "retcon eval --cases 'my facts.jsonl'"


def test_a_report_is_written(retcon: Retcon, model: str, edits: Path, tmp_path: Path) -> None:
    command = ["eval", "--model", model, "--cases", edits, "--limit", 3, "--sample", 2, *METRICS]
    said = retcon(*command, "--out", tmp_path / "report")
    assert said.code == 0
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.json", "report.md"]
    assert "written" in said.out


def test_a_published_file_is_judged_and_the_report_tells_whose_it_is(
    retcon: Retcon, model: str, published: Path, tmp_path: Path
) -> None:
    said = retcon("eval", "--model", model, "--cases", published, *METRICS, "--out", tmp_path / "report", "--json")
    assert said.code == 0
    data = said.json["provenance"]["data"]
    assert (data["name"], data["licence"], data["format"]) == ("counterfact", "MIT", "counterfact")
    assert data["files"] == [{"name": "counterfact.json", "sha256": file_sha256(published)}]
    assert "meng2022locating" in (tmp_path / "report" / "report.html").read_text("utf-8")


def test_an_unknown_metric_is_refused(retcon: Retcon, model: str, edits: Path) -> None:
    said = retcon("eval", "--model", model, "--cases", edits, "--metrics", "beauty")
    assert said.code == 2
    assert "beauty" in said.err


def test_free_running_figures_come_by_default_and_first(retcon: Retcon, model: str, edits: Path, patch: Path) -> None:
    said = retcon("eval", "--model", model, "--cases", edits, "--patch", patch, "--limit", 1, "--json")
    assert said.code == 0
    assert next(iter(said.json["metrics"])) == "efficacy_gen"
    assert said.json["metrics"]["efficacy_gen"] is not None
    assert {"details", "cases"} <= set(said.json)


def test_running_text_and_tasks_are_told_in_details(retcon: Retcon, model: str, edits: Path, patch: Path) -> None:
    command = ["eval", "--model", model, "--cases", edits, "--patch", patch, "--limit", 2, "--metrics", "efficacy"]
    said = retcon(*command, "--prefix-tokens", 0, 20, "--tasks", "common_sense,", "--json")
    assert said.code == 0
    assert list(said.json["details"]["prefix_tokens"]) == ["0", "20"]
    assert list(said.json["metrics"]) == list(said.json["before"]) == ["efficacy", "ability_common_sense"]
    shown = retcon(*command, "--tasks", "common_sense")
    assert "ability_common_sense" in shown.out


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="the extra lm-eval is installed")
def test_tasks_of_the_harness_ask_for_the_extra(retcon: Retcon, model: str, edits: Path) -> None:
    said = retcon("eval", "--model", model, "--cases", edits, "--tasks", "hellaswag")
    assert said.code == 2
    assert "retcon-lm[lm-eval]" in said.err.replace("\n", "")


def test_options_of_edits_do_not_go_with_forgetting(retcon: Retcon, model: str, edits: Path) -> None:
    for option in (["--tasks", "arithmetic"], ["--prefix-tokens", 5], ["--text", edits]):
        said = retcon("eval", "--model", model, "--forget", edits, *option)
        assert said.code == 2
        assert f"{option[0]} belongs to --cases" in said.err.replace("\n", " ")
