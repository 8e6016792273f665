"""`retcon eval`: one JSON object that begins as promised, and a report in a folder."""

from pathlib import Path

from tests.cli.conftest import Retcon

from retcon.storage import file_sha256

METRICS = ["--metrics", "efficacy", "efficacy_prob,specificity"]


def test_json_begins_with_n_metrics_before_and_seconds(retcon: Retcon, model: str, edits: Path, patch: Path) -> None:
    said = retcon("eval", "--model", model, "--cases", edits, "--patch", patch, *METRICS, "--json")
    assert said.code == 0
    assert list(said.json)[:4] == ["n", "metrics", "before", "seconds"]
    assert list(said.json["metrics"]) == list(said.json["before"]) == ["efficacy", "efficacy_prob", "specificity"]
    assert said.json["metrics"]["efficacy_prob"] > said.json["before"]["efficacy_prob"]
    assert said.json["provenance"]["file"]["sha256"] == file_sha256(edits)
    assert said.json["provenance"]["command"].startswith("retcon ")


def test_a_report_is_written(retcon: Retcon, model: str, edits: Path, tmp_path: Path) -> None:
    command = ["eval", "--model", model, "--cases", edits, "--limit", 3, "--sample", 2, *METRICS]
    said = retcon(*command, "--out", tmp_path / "report")
    assert said.code == 0
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.json", "report.md"]
    assert "written" in said.out


def test_an_unknown_metric_is_refused(retcon: Retcon, model: str, edits: Path) -> None:
    said = retcon("eval", "--model", model, "--cases", edits, "--metrics", "beauty")
    assert said.code == 2
    assert "beauty" in said.err
