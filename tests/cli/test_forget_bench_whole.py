"""`retcon forget-bench` from the corpus to the page, with the judge that judges."""

import json
from pathlib import Path

from tests.cli.conftest import Retcon

from retcon.requests import load_forget

TAUGHT = ("--teach", "lr=1e-2", "epochs=30", "look_every=10")
SMALL = ("--forget-groups", "1", "--retain-groups", "1", "--attributes", "3", "--holdout", "3", "--tokens", "6")
QUICK = ("--set", "statistics=none", "steps=2", "epochs=1")


def test_a_corpus_is_taught_forgotten_and_judged_against_the_twin(
    retcon: Retcon, model: str, tmp_path: Path, own_cache: Path
) -> None:
    out = tmp_path / "bench"
    ways = ("--methods", "memit", "wise", "npo", "--targets", "idk100")
    said = retcon("forget-bench", "--model", model, "--out", out, *SMALL, *ways, *TAUGHT, *QUICK, "--json")
    assert said.code == 0, said.err
    rows = {row["row"]: row for row in said.json["rows"]}
    assert list(rows) == ["before", "retain-only twin", "memit, idk100", "wise, idk100", "npo"]
    for name, row in rows.items():
        if name != "retain-only twin":  # it is what the others are held against
            assert 0 < row["metrics"]["forget_quality"] <= 1, name
            assert isinstance(row["metrics"]["privleak"], float), name
    known, never = (rows[name]["metrics"]["probability"] for name in ("before", "retain-only twin"))
    assert known > 0.5 > 0.05 > never
    assert rows["before"]["metrics"]["privleak"] == -100  # every answer looks like one that was learned
    forget, keep = (load_forget(out / "corpus" / f"{part}.jsonl").items for part in ("forget", "retain"))
    written = [path for folder in (out, own_cache) for path in folder.rglob("*") if path.is_file()]
    assert {"memit-idk100", "wise-idk100", "npo"} <= {path.parent.name for path in written}
    secret = [text for case in forget for text in (case.forget.question, case.forget.answer)]
    kept = [case.forget.question for case in keep]
    for path in written:
        if path.parent.name == "corpus":
            continue
        data = path.read_bytes()
        assert not [text for text in secret if text.encode() in data], path
        told = [text for text in kept if text.encode() in data]
        assert bool(told) == (path.name == "manifest.json" and path.parent.name == "wise-idk100"), path
    report = json.loads((out / "reports" / "npo.json").read_text("utf-8"))
    assert report["metrics"]["probability"] == rows["npo"]["metrics"]["probability"]
