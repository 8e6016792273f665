"""Cases on disk."""

from pathlib import Path
from typing import Any

import pytest

from retcon.bench import records
from retcon.errors import RetconError

CASES: list[dict[str, Any]] = [
    {
        "id": "a", "prompt": "Ada lives in", "subject": "Ada", "target": "Rome", "old": None,
        "metrics": {"efficacy": 1.0, "specificity": None}, "before": {"efficacy": 0.0, "specificity": None},
        "answers": {"before": "Paris", "after": "Rome"}, "missed": ["Ada's home is"],
        "changed": [{"prompt": "Bob lives in", "before": "Oslo", "after": "Rome"}],
    },
    {
        "id": None, "prompt": "1 + 1 =", "subject": None, "target": "3", "old": "2",
        "metrics": {"efficacy": 0.5, "specificity": 1.0}, "before": {"efficacy": 0.0, "specificity": 1.0},
        "answers": {"before": None, "after": None}, "missed": [], "changed": [],
    },
]  # fmt: skip
ABOUT = {"cell": "k", "model": "tiny", "edits": 2}


def test_cases_come_back_as_they_were_and_the_same_ones_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "parquet", lambda: False)
    path = records.save(CASES, tmp_path / "cases", "one", ABOUT)
    assert path.name == "one.jsonl.gz"
    assert records.load(path) == CASES
    assert records.save(CASES, tmp_path / "cases", "two", ABOUT).read_bytes() == path.read_bytes()


def test_cases_without_a_comparison_have_no_figures_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "parquet", lambda: False)
    alone = [case | {"before": None} for case in CASES]
    assert records.load(records.save(alone, tmp_path, "one", {})) == alone


def test_as_parquet_they_come_back_too_in_typed_columns(tmp_path: Path) -> None:
    files = pytest.importorskip("pyarrow.parquet")
    path = records.save(CASES, tmp_path, "one", ABOUT)
    assert path.name == "one.parquet"
    assert records.load(path) == CASES
    schema = files.read_schema(path)
    kinds = {name: str(schema.field(name).type) for name in ("cell", "edits", "metrics.efficacy", "before.efficacy")}
    assert kinds == {"cell": "string", "edits": "int64", "metrics.efficacy": "double", "before.efficacy": "double"}


def test_what_cannot_be_read_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "parquet", lambda: False)
    with pytest.raises(RetconError, match="there is no file .*one.jsonl.gz with the cases"):
        records.load(tmp_path / "one.jsonl.gz")
    path = records.save(CASES, tmp_path, "one", ABOUT)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RetconError, match="cannot be read .*; remove it and run the bench again"):
        records.load(path)
    (tmp_path / "one.parquet").touch()
    with pytest.raises(RetconError, match=r"is Parquet, which needs pip install 'retcon-lm\[bench\]'"):
        records.load(tmp_path / "one.parquet")
