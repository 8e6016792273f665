"""The journal: whole or not there, and gone at the end."""

from pathlib import Path

import torch

from retcon.methods.unlearning.journal import FOLDER, Journal
from retcon.targets import Store

TENSORS = {"leaf.0": torch.arange(6.0).reshape(2, 3).T, "optimiser.0.step": torch.tensor(3.0)}
NOTES = {"steps": 3, "readings": [{"loss": 0.1 + 0.2, "utility": None}]}


def test_what_is_written_is_read_to_the_bit_and_goes_at_the_end(tmp_path: Path) -> None:
    stores = [Store(tmp_path / name / "targets.sqlite") for name in ("one", "other")]
    journal = Journal(stores, "key")
    assert journal.read() is None
    journal.write(TENSORS, {})
    journal.write(TENSORS, NOTES)
    for again in (journal, Journal(stores[1:], "key")):
        found = again.read()
        assert found is not None
        tensors, notes = found
        assert notes == NOTES
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert Journal(stores, "another").read() is None
    (tmp_path / "one" / FOLDER / ".key.safetensors.killed").touch()
    journal.drop()
    assert journal.read() is None
    left = [file.name for folder in ("one", "other") for file in (tmp_path / folder).iterdir()]
    assert left == ["targets.sqlite", "targets.sqlite"]
    journal.drop()


def test_the_end_of_one_run_leaves_the_journals_of_others(tmp_path: Path) -> None:
    store = Store(tmp_path / "targets.sqlite")
    one, other = Journal([store], "one"), Journal([store], "other")
    one.write(TENSORS, NOTES)
    other.write(TENSORS, NOTES)
    one.drop()
    assert other.read() is not None


def test_a_damaged_journal_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "targets.sqlite")
    journal = Journal([store], "key")
    journal.write(TENSORS, NOTES)
    file = tmp_path / FOLDER / "key.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    assert journal.read() is None


def test_without_a_store_nothing_is_written(tmp_path: Path) -> None:
    journal = Journal([], "key")
    journal.write(TENSORS, NOTES)
    assert journal.read() is None
    journal.drop()
    assert not list(tmp_path.iterdir())
