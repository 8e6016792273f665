"""What was said, kept on disk: shared by processes, whole after a kill, and sealed where it is a secret."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from retcon.caches import Sealed, Store


def test_a_store_that_is_not_there_is_empty_and_reading_makes_no_file(tmp_path: Path) -> None:
    assert Store(tmp_path / "none.sqlite").get([b"key"]) == {}
    assert list(tmp_path.iterdir()) == []


def test_many_keys_are_found_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    rows = {n.to_bytes(4, "big"): bytes([n % 256]) for n in range(2_500)}
    store.put(rows)
    assert store.get([*rows, b"unknown"]) == rows


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b""])
def test_a_damaged_store_is_started_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(content)
    store = Store(path)
    assert store.get([b"key"]) == {}
    store.put({b"key": b"value"})
    assert store.get([b"key"]) == {b"key": b"value"}


def test_a_store_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    store = Store(tmp_path / "missing" / "a.sqlite")
    store.put({b"key": b"value"})
    assert store.get([b"key"]) == {}


def test_what_was_not_committed_is_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    store.put({b"old": b"1"})
    killed = sqlite3.connect(tmp_path / "a.sqlite")
    killed.execute("INSERT INTO answers VALUES (?, ?)", (b"new", b"2"))
    killed.close()
    assert store.get([b"old", b"new"]) == {b"old": b"1"}


def test_several_writers_share_one_store(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"

    def put(start: int) -> None:
        for n in range(start, start + 10):
            Store(path).put({n.to_bytes(4, "big"): b"value"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(0, 40, 10)))
    assert len(Store(path).get(n.to_bytes(4, "big") for n in range(40))) == 40


def test_a_sealed_store_gives_back_what_it_holds_to_those_who_ask_alone(tmp_path: Path) -> None:
    path, key, value = tmp_path / "answers.sqlite", b"0123456789abcdef", b"Oberwinterthal" * 9
    Sealed(path, b"one").put({key: value, b"other": b""})
    assert Sealed(path, b"one").get([key, b"other", b"absent"]) == {key: value, b"other": b""}
    assert Sealed(path, b"two").get([key]) == {}
    assert Store(path).get([key]) == {}
    data = path.read_bytes()
    assert value[:8] not in data
    assert key not in data


def test_equal_answers_to_different_questions_are_sealed_apart(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    Sealed(path, b"one").put({b"a": b"same answer here", b"b": b"same answer here"})
    with sqlite3.connect(path) as database:
        rows = [value for (value,) in database.execute("SELECT value FROM answers")]
    assert len(set(rows)) == 2
    assert all(len(row) == 16 for row in rows)
