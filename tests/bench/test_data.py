"""Cases by name or path."""

import json
from pathlib import Path

import pytest

from retcon.bench.data import Datasets
from retcon.errors import RetconError


def test_a_set_is_loaded_once_with_its_provenance_and_hash(facts: Path) -> None:
    sets = Datasets()
    builtin = sets.get("builtin", 3, 0)
    assert sets.get("builtin", 3, 0) is builtin
    assert len(builtin.cases) == 3
    assert (builtin.provenance["name"], builtin.provenance["licence"]) == ("builtin", "Apache-2.0")
    assert sets.get("builtin", 3, 1).sha256 != builtin.sha256
    own = sets.get(str(facts), 4, 0)
    assert [case.edit.id for case in own.cases] == ["tiny-0", "tiny-1", "tiny-2", "tiny-3"]
    assert own.notes == ()


def test_shuffled_seeds_take_other_facts_and_more_of_them_hold_the_fewer(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    rows = [{"prompt": "{} is in", "subject": f"Town {n}", "target_new": f"Land {n}", "id": str(n)} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def taken(n: int, seed: int, *, shuffle: bool = True) -> list[str]:
        return [str(case.edit.id) for case in Datasets(shuffle=shuffle).get(str(path), n, seed).cases]

    assert taken(5, 0, shuffle=False) == taken(5, 1, shuffle=False) == ["0", "1", "2", "3", "4"]
    assert taken(5, 0) != taken(5, 1)
    assert taken(5, 1) == taken(5, 1) == taken(20, 1)[:5]
    assert sorted(taken(40, 2), key=int) == [str(n) for n in range(40)]
    assert Datasets(shuffle=True).get(str(path), 5, 1).provenance["shuffled"] is True
    table = tmp_path / "many.csv"
    table.write_text("prompt,subject,target_new\n" + "".join(f"{{}} is in,Town {n},Land {n}\n" for n in range(40)))
    first, second = (Datasets(shuffle=True).get(str(table), 5, seed).sha256 for seed in (0, 1))
    assert first != second


def test_the_hash_of_the_edits_is_blind_to_how_they_are_judged(facts: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in facts.read_text(encoding="utf-8").splitlines()]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps(record | {"neighbours": []}) + "\n" for record in records), encoding="utf-8")
    one, other = Datasets().get(str(facts), 4, 0), Datasets().get(str(bare), 4, 0)
    assert one.edits_sha256 == other.edits_sha256
    assert one.sha256 != other.sha256


def test_fewer_records_than_asked_for_and_bad_ones_are_told(facts: Path, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(facts.read_text(encoding="utf-8") + "no json\n", encoding="utf-8")
    found = Datasets().get(str(path), 9, 0)
    assert len(found.cases) == 4
    assert "1 records are left out" in found.notes[0]
    assert "4 good records, fewer than the 9 asked for" in found.notes[1]


def test_what_is_no_set_of_edits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RetconError, match=r"tofu holds questions to forget, not edits; take it with `retcon forget-b"):
        Datasets().get("tofu", 1, 0)
    with pytest.raises(RetconError, match="zsre has no split 'train'; choose from test, all, mend"):
        Datasets().get("zsre:train", 1, 0)
    with pytest.raises(RetconError, match="there is no file"):
        Datasets().get(str(tmp_path / "none.jsonl"), 1, 0)
