"""What a model said, kept on disk by what it was asked, so that it need not be asked again; plain or sealed."""

import hashlib
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

__all__ = ["Sealed", "Store"]

_ROWS = 500  # keys in one query: well below SQLite's limit on variables


class Store:
    """A file of keys and values that several processes may use at once and that a killed one leaves whole.

    It only saves time: where it cannot be read or written (damaged, locked, full disk) the answers are asked for again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there."""
        wanted, found = list(keys), dict[bytes, bytes]()
        if not self._path.is_file():
            return {}
        try:
            with closing(self._open()) as database:
                for start in range(0, len(wanted), _ROWS):
                    some = wanted[start : start + _ROWS]
                    marks = ",".join("?" * len(some))
                    found.update(database.execute(f"SELECT key, value FROM answers WHERE key IN ({marks})", some))
        except sqlite3.OperationalError:
            return {}
        except sqlite3.DatabaseError:  # not a database any more: start anew
            self._path.unlink(missing_ok=True)
            return {}
        return found

    def put(self, rows: Mapping[bytes, bytes]) -> None:
        """Keep the values, all of them or none."""
        try:
            with closing(self._open()) as database, database:
                database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows.items())
        except sqlite3.DatabaseError:
            return

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=30)
        try:
            database.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        except sqlite3.Error:
            database.close()
            raise
        return database


class Sealed(Store):
    """A store that can be read only by asking again: for what a model says to questions whose answers are to go.

    A row is known by a hash of its question under a secret, and its value is combined bit by bit with a stream drawn
    from that question. Whoever has the file and not the questions learns lengths, and nothing of what was said.
    """

    def __init__(self, path: Path, secret: bytes) -> None:
        """`secret` is of 64 bytes at most; it stays out of the file."""
        super().__init__(path)
        self._secret = secret

    def get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there."""
        names = {self._name(key): key for key in keys}
        return {names[name]: self._turned(names[name], value) for name, value in super().get(names).items()}

    def put(self, rows: Mapping[bytes, bytes]) -> None:
        """Keep the values, all of them or none."""
        super().put({self._name(key): self._turned(key, value) for key, value in rows.items()})

    def _name(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, digest_size=16, key=self._secret, person=b"retcon-name").digest()

    def _turned(self, key: bytes, value: bytes) -> bytes:
        """The value sealed, or, of a sealed one, the value."""
        seed = hashlib.blake2b(key, key=self._secret, person=b"retcon-value").digest()
        stream = hashlib.shake_256(seed).digest(len(value))
        return bytes(a ^ b for a, b in zip(value, stream, strict=True))
