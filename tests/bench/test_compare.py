"""Two benches against each other."""

from pathlib import Path
from typing import Any

import pytest

from retcon.bench import records
from retcon.bench.compare import compared, rows_of
from retcon.bench.rows import Rows
from retcon.errors import RetconError
from retcon.metrics.intervals import paired


def bench(folder: Path, method: str = "memit", hits: int = 30, **more: Any) -> Path:
    """A folder with one row of forty cases, the first so many of them right."""
    row: dict[str, Any] = {"row": f"{method}, builtin, N=40", "method": method, "dataset": "builtin", "edits": 40}
    row |= {"seed": 0, "model": "tiny", "mode": "batch", "chunk": None} | more
    cases: list[dict[str, Any]] = [
        {
            "id": str(n), "prompt": f"{n} is", "subject": None if n % 2 else f"s{n // 4}", "target": "x", "old": None,
            "metrics": {"efficacy": float(n < hits)}, "before": None, "answers": {}, "missed": [], "changed": [],
        }
        for n in range(more.get("judged", 40))
    ]  # fmt: skip
    path = records.save(cases, folder / "cases", row["row"], {})
    row["metrics"] = {"efficacy": hits / 40, "score": 0.1 * hits, "fluency": None}
    Rows(folder).put(row["row"], row | {"cases": f"cases/{path.name}"})
    return folder


def test_the_same_cells_are_compared_case_by_case_by_subject(tmp_path: Path) -> None:
    first, second = bench(tmp_path / "a"), bench(tmp_path / "b", hits=10)
    bench(tmp_path / "b", "rome")
    found = compared(first, second / "rows.jsonl", seed=3)
    (pair,) = found.pairs
    assert (pair.n, found.only_first, found.only_second) == (40, [], ["rome, builtin, N=40"])
    assert list(pair.figures) == ["efficacy", "score"]
    efficacy = pair.figures["efficacy"]
    clusters = [(n, "") if n % 2 else (-1, f"s{n // 4}") for n in range(40)]
    want = paired([float(n < 30) for n in range(40)], [float(n < 10) for n in range(40)], clusters, seed=3)
    assert want is not None
    told = (efficacy.difference, efficacy.low, efficacy.high, efficacy.p)
    assert told == (want.difference, want.low, want.high, want.p)
    assert (efficacy.first, efficacy.second, efficacy.difference) == (0.75, 0.25, 0.5)
    score = pair.figures["score"]
    assert score.difference == pytest.approx(2.0)
    assert (score.low, score.p) == (None, None)


def test_two_methods_of_one_folder_are_held_against_each_other(tmp_path: Path) -> None:
    both = bench(bench(tmp_path / "a"), "rome", hits=20)
    (pair,) = compared(both, both, methods=("memit", "rome")).pairs
    assert (pair.first, pair.second) == ("memit, builtin, N=40", "rome, builtin, N=40")
    assert pair.figures["efficacy"].difference == 0.25
    assert [one.figures["efficacy"].difference for one in compared(both, both).pairs] == [0, 0]


def test_different_cases_are_refused(tmp_path: Path) -> None:
    first, second = bench(tmp_path / "a"), bench(tmp_path / "b", judged=39)
    with pytest.raises(RetconError, match=r"^memit, builtin, N=40 and .* were judged on different cases; run both on"):
        compared(first, second)


def test_a_cell_that_cannot_be_compared_is_listed_and_the_rest_are(tmp_path: Path) -> None:
    first, second = bench(tmp_path / "a"), bench(tmp_path / "b", judged=39)
    for folder in (first, second):
        bench(folder, "rome")
        bench(folder, "pmet")
    next((second / "cases").glob("pmet*")).unlink()
    found = compared(first, second)
    assert [pair.first for pair in found.pairs] == ["rome, builtin, N=40"]
    different, gone = found.refused
    assert different.startswith("memit, builtin, N=40 and memit, builtin, N=40 were judged on different cases; run")
    assert gone.startswith("pmet, builtin, N=40: there is no file ")
    assert found.to_dict()["refused"] == [different, gone]
    with pytest.raises(RetconError, match=r"^memit, .* and memit, .* were judged on different cases"):
        compared(first, second, methods=("memit", "memit"))


def test_what_has_nothing_in_common_and_what_is_no_bench_is_refused(tmp_path: Path) -> None:
    first, second = bench(tmp_path / "a"), bench(tmp_path / "b", seed=1)
    with pytest.raises(RetconError, match="have no finished cell in common"):
        compared(first, second)
    with pytest.raises(RetconError, match="none holds no rows; give the --out of a `retcon bench`"):
        rows_of(tmp_path / "none")
    Rows(tmp_path / "other", setting="s").put("a", {"row": "before"})
    with pytest.raises(RetconError, match="rows of another kind of bench"):
        rows_of(tmp_path / "other")


def test_folders_of_the_same_set_elsewhere_are_the_same_cell(tmp_path: Path) -> None:
    first = bench(tmp_path / "a", dataset="/one/facts.jsonl", model="/here/tiny")
    second = bench(tmp_path / "b", dataset="facts.jsonl", model="tiny")
    assert len(compared(first, second).pairs) == 1


def test_a_figure_that_is_no_finite_number_is_told_and_not_compared(tmp_path: Path) -> None:
    first, second = bench(tmp_path / "a"), bench(tmp_path / "b", not_finite={"fluency": "nan", "score": "inf"})
    (pair,) = compared(first, second).pairs
    assert list(pair.figures) == ["efficacy"]
    assert pair.not_compared == {"score": "it is 3.000 in the first and ∞ in the second"}
