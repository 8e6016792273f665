"""The cells of the probes: named, bounded, told in the result, and shown in the table."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import common, forgetting, probing
from retcon.probes import Probed, ProbeResult
from retcon.probes.table import PROBES


def result(name: str, attacked: float | None, recovery: float | None, **setting: Any) -> ProbeResult:
    return ProbeResult(name, setting, 1.0, 0.1, 1.0, attacked, 0.0, recovery, 40, 1.0)


def probed(results: list[ProbeResult]) -> Probed:
    return Probed(
        results, model="m", patch="p", method="memit", asked=40, known=38, unlearned=0.1, twin=0.0, folds=True,
        has_twin=True, chat=True, seed=0, seconds=2.0,
    )  # fmt: skip


def test_the_six_best_and_two_controls_have_a_cell_on_each_set() -> None:
    names = list(probing.cells())
    assert len(names) == len(set(names)) == 2 * (len(forgetting.BEST) + len(forgetting.CONTROLS))
    assert "forgetting/probes_factual_npo" in names
    assert all(name.startswith("forgetting/probes_") for name in names)


def test_every_usual_probe_is_made_within_a_bound_that_the_result_tells() -> None:
    from retcon.probes.table import chosen

    made = [name for bound in probing.BOUNDS.values() for name in chosen(bound.probes)]
    assert sorted(made) == sorted(name for name, attack in PROBES.items() if attack.usual)
    told = {kind: probing._told(bound) for kind, bound in probing.BOUNDS.items()}
    assert json.loads(json.dumps(told)) == told
    assert told["tokenisation"]["settings"]["Tokenisation"]["splits"] == 5
    assert told["tokenisation"]["questions"] < told["relearning"]["questions"]


def test_a_part_that_was_found_is_not_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def probe(*_: Any, **options: Any) -> Probed:
        asked.append(options["names"])
        return probed([result("detach", 0.5, 0.4)])

    class One:
        id = "p"

    class Model:
        chat = True

    monkeypatch.setattr(probing, "probe", probe)
    for bound in (probing.BOUNDS["inside"], probing.BOUNDS["inside"], probing.BOUNDS["decoding"]):
        part: Any = probing._part
        found = part(Model(), [], [], One(), {}, bound, tmp_path / "work" / "inside.json")
        assert found == probed([result("detach", 0.5, 0.4)])
    assert asked == [("lens", "quantise", "detach"), ("decoding",)]


def test_the_table_has_a_column_for_each_way_and_the_verdicts_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert probing.section() == []
    for way, attacked in (("npo", 0.55), ("grace-idk100", None)):
        recovery = None if attacked is None else 0.5
        found = probed([result("quantise", attacked, recovery, bits=4), result("cloze", 0.1, 0.0)]).to_dict()
        path = tmp_path / "forgetting" / f"probes_tofu_{way}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"figures": {"set": "tofu", "way": way, "bounds": {}, **found}}))
    lines = probing.section()
    assert lines[0].startswith("## Forgetting, tofu")
    assert "| probe | grace-idk100 | npo |" in lines
    assert "| quantise (bits 4) | n/a | 0.55 (0.50) |" in lines
    assert any(line.startswith("- npo: Suppresses: 38 answers") for line in lines)
