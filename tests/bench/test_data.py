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
