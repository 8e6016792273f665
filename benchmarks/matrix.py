"""The matrix: every method on every set, each cell run by `retcon.bench`. One cell a process.

A cell goes on where it was stopped: its patch, targets and cases are kept in a folder of its own between runs. Its row
goes to `results/matrix/TABLE/rows.jsonl`, beside those of the other cells; `docs/results.md` is made of them.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common, quality
from retcon import bench, storage
from retcon.bench.rows import Row, read
from retcon.methods import METHODS

__all__ = ["TABLES", "Table", "anew", "cells", "held", "kept", "measure"]

SETS = ("builtin", "counterfact", "zsre", "wiki_recent")
EDITORS = tuple(name for name, kind in METHODS.items() if not getattr(kind, "unlearns", False))
SLOW = {"rome": 100, "wise": 300}
"""Methods that edit one fact after the other, and the most facts that they are given here."""
JUDGED = 200
"""Cases that a large batch is judged on, a seeded sample."""
METRICS = ("portability_gen", "two_hop_gen", *quality.METRICS)
BARE = ("builtin", "wiki_recent")
"""Sets on which edit prompts are not asked behind other texts too: that takes a third of the time of judging."""
SHARED = {"statistics": common.STATISTICS}
"""Options of all methods that have them; a file."""


@dataclass(frozen=True)
class Table:
    """One set, so many facts in one batch, and the methods that are held against each other there."""

    dataset: str
    edits: int
    methods: tuple[str, ...] = EDITORS

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.dataset}_{self.edits}"

    @property
    def folder(self) -> Path:
        """Where its rows are."""
        return common.RESULTS / "matrix" / self.name

    @property
    def command(self) -> str:
        """What makes all of it."""
        return f"RETCON_DATA=... python -m benchmarks 'matrix/{self.name}_*'"

    @property
    def able(self) -> tuple[str, ...]:
        """Its methods without those that are too slow for so many facts."""
        return tuple(name for name in self.methods if self.edits <= SLOW.get(name, self.edits))


_EVERY = (
    *(Table(dataset, 100) for dataset in SETS),
    Table("counterfact", 300, ("memit", "wise")),
    Table("counterfact", 1000),
)
TABLES = {table.name: table for table in _EVERY}


def measure(name: str, method: str) -> None:
    """One cell; targets that methods have in common are searched once, so seconds are told by `methods.timing`.

    Raises:
        SystemExit: the cell failed; its row says why.
    """
    table = TABLES[name]
    work = bench.Bench(bench.load(asked(table)), _home(name, method), (method,), command=table.command)
    plan = work.plan()
    for note in plan.notes:
        common.say(note)
    (row,) = work.run(plan)
    _publish(table, row)
    common.say(json.dumps(row.get("metrics"), indent=2))
    if "failed" in row:
        raise SystemExit(f"{row['row']} failed: {row['failed']}")


def asked(table: Table) -> dict[str, Any]:
    """The keys of a table's run, as `retcon bench` takes them."""
    return {
        "models": [common.MODEL],
        "methods": list(table.able),
        "datasets": [table.dataset],
        "edits": [table.edits],
        "set": {name: str(value) for name, value in SHARED.items()},
        "metrics": [name for name in METRICS if name != "efficacy_prefixed" or table.dataset not in BARE],
        "sample": JUDGED if table.edits > JUDGED else None,
        "text": str(common.TEXT),
    }


def cells() -> dict[str, Callable[[], None]]:
    """All cells by name."""
    return {cell: partial(measure, *place) for cell, place in _places().items()}


def kept(cell: str) -> bool:
    """Whether a cell's row is there, and not one of a failure."""
    name, method = _places()[cell]
    return any(row["method"] == method and "failed" not in row for row in held(TABLES[name]))


def anew(cell: str) -> None:
    """Forget how far a cell has come."""
    shutil.rmtree(_home(*_places()[cell]), ignore_errors=True)


def held(table: Table) -> list[Row]:
    """The rows of a table that are there, in the order of the methods."""
    return _ordered(read(table.folder / "rows.jsonl").values())


def _places() -> dict[str, tuple[str, str]]:
    """Table and method of each cell."""
    return {f"matrix/{table.name}_{name}": (table.name, name) for table in TABLES.values() for name in table.able}


def _home(name: str, method: str) -> Path:
    """The folder of a cell's own: two cells that run at once share no file of rows."""
    return common.work("matrix") / name / method


def _publish(table: Table, row: Row) -> None:
    """Put a row among those of its table, in place of the method's older one; no path of this machine is in it."""
    told = row["options"].items()
    made = row | {"options": {name: Path(value).name if name in SHARED else value for name, value in told}}
    text = common.nowhere(json.dumps(made, ensure_ascii=False, allow_nan=False))
    with _alone(table.name):
        others = [older for older in held(table) if older["method"] != row["method"]]
        rows = _ordered([*others, json.loads(text)])
        lines = [json.dumps(one, ensure_ascii=False, allow_nan=False) for one in rows]
        with storage.new_file(table.folder / "rows.jsonl") as path:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with storage.new_file(table.folder / "rows.md") as path:
            path.write_text(bench.page(rows, title=table.name, command="python -m benchmarks"), encoding="utf-8")


def _ordered(rows: Iterable[Row]) -> list[Row]:
    """Rows in the order of `METHODS`, whichever was there first."""
    order = list(METHODS)
    return sorted(rows, key=lambda row: order.index(row["method"]) if row["method"] in order else len(order))


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """One process at a time: another cell of the table may end at the same moment."""
    place = common.work("matrix") / f"{name}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
