"""The bench: every cell edits a model and is judged on the final one, with all its edits in force."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retcon import storage
from retcon.bench import config as configuration
from retcon.bench import records
from retcon.bench.cells import Cell, cells, configured, why_not
from retcon.bench.config import Config
from retcon.bench.data import Data, Datasets
from retcon.bench.estimate import Source, Timings, timing
from retcon.bench.folding import folded, folds
from retcon.bench.models import Models
from retcon.bench.rows import Row, Rows
from retcon.bench.table import page
from retcon.bench.work import Job, work
from retcon.errors import RetconError
from retcon.evaluate import evaluate, provenance
from retcon.evaluate.curve import retention_step
from retcon.evaluate.plan import read
from retcon.evaluate.record import plain
from retcon.lm import LM
from retcon.metrics import METRICS
from retcon.metrics.retention import retention
from retcon.patch import Patch
from retcon.storage import digest

__all__ = ["Bench", "Plan", "Planned", "run"]

_TOTAL = ("edit", "retention", "judge")
"""Parts of a row's seconds that make its total; the others are parts of `edit`."""

_FOLLOWED = {"efficacy": "retention", "efficacy_gen": "retention_gen"}
"""Figures that are taken after each chunk, and the keys of a patch's info that keep them."""
_BOUNDS = "retention_intervals"
"""The key that keeps their intervals: by figure, for each step."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell as the plan shows it."""

    cell: Cell
    key: str
    """Hash of all that decides its row."""
    done: bool
    seconds: float
    """What it took, or may take."""
    source: Source


@dataclass(frozen=True, slots=True)
class Plan:
    """All cells, in the order in which they are worked."""

    cells: list[Planned]
    notes: tuple[str, ...]
    """What a user should know of the sets."""

    @property
    def seconds(self) -> float:
        """Of all cells."""
        return sum(item.seconds for item in self.cells)

    @property
    def left(self) -> float:
        """Of those that are not there yet."""
        return sum(item.seconds for item in self.cells if not item.done)


@dataclass(eq=False)
class Bench:
    """A configuration, and the folder in which its rows are kept."""

    config: Config
    folder: Path
    """Where `rows.jsonl`, `rows.md`, patches and cases go."""
    only: Sequence[str] = ()
    """Words that choose some of the cells: see `retcon.bench.cells.cells`."""
    cache: bool = True
    """Whether targets are looked up and kept in the cache that methods and runs share; the unedited model's answers
    always are, for judging is no part of a method's cost."""
    command: str = ""
    """What each row says that it was made by."""
    load: Callable[[str], LM] | None = None
    """Makes a model of its name; by default as the configuration says."""
    _sets: Datasets = field(init=False, repr=False)
    _models: Models = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._sets = Datasets(shuffle=self.config.shuffle)
        self._models = Models(self.load or self._loaded)

    def plan(self) -> Plan:
        """What is to be done and what is there; models and sets are loaded, nothing is measured.

        Raises:
            RetconError: a model or a set cannot be had, or the folder holds something else.
        """
        rows = self._rows()
        timings = Timings(filter(None, map(timing, rows.all())), (row["timing"] for row in _earlier().all()))
        wanted = cells(self.config, self.only)
        data = [self._data(cell) for cell in wanted]  # a set that is missing is told before a model is loaded
        planned = [self._planned(cell, rows, timings) for cell in wanted]
        notes = [*(note for found in data for note in found.notes), *_older(rows, planned)]
        return Plan(planned, tuple(dict.fromkeys(notes)))

    def run(self, plan: Plan | None = None) -> list[Row]:
        """All rows, in order: those that are there already are taken, those that failed are tried again.

        A row that fails says why in `failed`, and the rest are finished; one of a method that cannot edit the model
        says so in `na`.

        Args:
            plan: what `plan` gave, where that was called before.

        Raises:
            RetconError: as `plan`.
        """
        planned = (plan or self.plan()).cells
        rows = self._rows()

        def job(item: Planned) -> Job:
            return Job(item.key, item.cell.name, item.cell.asked(), lambda: self._row(item.cell, item.key))

        return work(rows, [job(item) for item in planned])

    # --------------------------------------------------------------------------------------------- parts

    def _rows(self) -> Rows:
        def intact(row: Row) -> bool:
            return "cases" not in row or (self.folder / row["cases"]).is_file()

        return Rows(self.folder, table=page, of_another="rows of another kind of bench", intact=intact)

    def _loaded(self, name: str) -> LM:
        config = self.config
        return LM.load(name, device=config.device, dtype=config.dtype, chat=config.chat)

    def _data(self, cell: Cell) -> Data:
        return self._sets.get(cell.dataset, cell.edits, cell.seed)

    def _metrics(self) -> list[str]:
        return [name for name in METRICS if self.config.metrics is None or name in self.config.metrics]

    def _text(self) -> Path | None:
        return None if self.config.text is None else Path(self.config.text)

    # --------------------------------------------------------------------------------------------- plan

    def _planned(self, cell: Cell, rows: Rows, timings: Timings) -> Planned:
        lm, data = self._models.get(cell.model), self._data(cell)
        key = self._key(cell, lm, data)
        found = rows.done(key)
        if found is not None:
            return Planned(cell, key, True, sum(found.get("seconds", {}).get(part, 0) for part in _TOTAL), "measured")
        n = len(data.cases)
        expected = timings.of(cell, lm, n, min(n, self.config.sample or n), self._metrics())
        return Planned(cell, key, False, expected.seconds, expected.source)

    def _patch_key(self, cell: Cell, lm: LM, data: Data) -> str:
        """Hash of all that decides a patch."""
        options = asdict(configured(cell.method, cell.options, cell.seed).config)
        files = [storage.file_sha256(value) for value in options.values() if _is_file(value)]
        state = [lm.fingerprint(), lm.chat, lm.device.type, provenance.versions()]
        return digest("bench-1", state, cell.method, options, files, data.edits_sha256, cell.chunk)

    def _key(self, cell: Cell, lm: LM, data: Data) -> str:
        """Hash of all that decides a row."""
        text = provenance.text_sha256(read(self._text()))
        judging = [data.sha256, self._metrics(), self.config.sample, text, cell.seed]
        return digest(cell.name, self._patch_key(cell, lm, data), judging)[:16]

    # --------------------------------------------------------------------------------------------- rows

    def _row(self, cell: Cell, key: str) -> dict[str, Any]:
        """Edit, judge, and tell of both."""
        lm, data = self._models.get(cell.model), self._data(cell)
        method = configured(cell.method, cell.options, cell.seed)
        if (reason := why_not(lm, method)) is not None:
            return {"na": reason}
        patch = self._patch(lm, cell, data)
        judged = self._judged(lm, cell, data, patch, key)
        info = patch.info
        phases = {name: round(value, 3) for name, value in info["seconds"].items()}
        own = sum(value for name, value in phases.items() if name != "statistics")  # collected once a model, and kept
        more = {} if cell.chunk is None else {"retention": info["retention_seconds"]}
        row = {
            **judged,
            "seconds": {"edit": info["wall_seconds"], **phases, **more, **judged["seconds"]},
            "seconds_per_edit": None if info["targets_cached"] else round(own / len(data.cases), 4),
            "targets_cached": info["targets_cached"],
            **{name: info[name] for name in ("peak_memory_mb", "peak_memory_own", "peak_device_mb")},
            "patch": {"id": patch.id, "bytes": patch.size_bytes, "folds": folds(patch), "summary": patch.summary},
            **({} if cell.chunk is None else {"retention": _kept(info)}),
            "config": plain(asdict(method.config)),
        }
        if (told := timing(cell.asked() | row)) is not None:
            _earlier().put(key, {"row": cell.name, "timing": told})
        return row

    def _patch(self, lm: LM, cell: Cell, data: Data) -> Patch:
        """The patch of a cell; one that a stopped run has made is taken, and one half made is gone on with."""
        edits, key = [case.edit for case in data.cases], self._patch_key(cell, lm, data)

        def after(made: Patch, before: Mapping[str, Any]) -> dict[str, Any]:
            started, size = time.perf_counter(), cell.chunk or len(edits)
            done = data.cases[: len(made.edits)]
            chunks = [done[start : start + size] for start in range(0, len(done), size)]
            held = retention_step(lm, chunks, made, metrics=list(_FOLLOWED))
            scores = {key: [*_so_far(before, key), list(held[name].by_batch)] for name, key in _FOLLOWED.items()}
            bounds = {name: list(step.interval) for name, step in held.items() if step.interval is not None}
            spent = before.get("retention_seconds", 0.0) + time.perf_counter() - started
            return {**scores, _BOUNDS: [*_bounds_so_far(before), bounds], "retention_seconds": round(spent, 3)}

        return folded(
            lm,
            configured(cell.method, cell.options, cell.seed),
            edits,
            self.folder / "patches" / f"{cell.slug}-{key[:8]}",
            key,
            chunk=cell.chunk,
            cache=self.cache,
            after=None if cell.chunk is None else after,
        )

    def _judged(self, lm: LM, cell: Cell, data: Data, patch: Patch, key: str) -> dict[str, Any]:
        """The figures of the final model; its cases go to a file of their own."""
        report = evaluate(
            lm,
            data.cases,
            patch=patch,
            metrics=self._metrics(),
            seed=cell.seed,
            text=self._text(),
            sample=self.config.sample,
            provenance={
                "data": data.provenance | {"cases_sha256": data.sha256},
                "command": self.command,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        ).to_dict()
        about = {"cell": key, **{name: cell.asked()[name] for name in ("model", "method", "dataset", "edits", "seed")}}
        path = records.save(report["cases"], self.folder / "cases", f"{cell.slug}-{key[:8]}", about)
        return {
            "n": len(data.cases),
            "judged": report["n"],
            **{name: report[name] for name in ("metrics", "intervals", "before", "before_intervals")},
            **{name: report[name] for name in ("not_finite", "before_not_finite", "warnings") if report.get(name)},
            "seconds": {"judge": report["seconds"]},
            "cases": path.relative_to(self.folder).as_posix(),
            "provenance": report["provenance"],
        }


def run(
    config: Config | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    only: Sequence[str] = (),
    cache: bool = True,
    load: Callable[[str], LM] | None = None,
) -> list[Row]:
    """Run a bench, or what is left of it, and return its rows in order: see `Bench`.

    Args:
        config: a TOML file, its keys as a mapping, or `builtin`.
        out: the folder for rows, patches and cases.
        only: of its models, methods, datasets, `n=NUMBER` and `seed=NUMBER`.
        cache: whether targets are shared between methods and runs; without, seconds are each method's own.
        load: makes a model of its name, where `LM.load` is not what is wanted.

    Raises:
        RetconError: a key is wrong, a model or a set cannot be had, or the folder holds something else.
    """
    return Bench(configuration.load(config), Path(out), only, cache, command="retcon.bench.run", load=load).run()


def _earlier() -> Rows:
    """The speed of cells that were finished on this machine, whatever their folder."""
    folder = storage.cache_dir("bench")
    try:
        return Rows(folder)
    except RetconError:  # it only saves guessing
        (folder / "rows.jsonl").unlink(missing_ok=True)
        return Rows(folder)


def _older(rows: Rows, planned: Sequence[Planned]) -> list[str]:
    """A note where rows that are there were measured by other code of the same version."""
    there = [rows.done(item.key) or {} for item in planned if item.done]
    known = [found for row in there if (found := row.get("provenance", {}).get("code")) is not None]
    other = sum(found != provenance.code() for found in known)
    if not other:
        return []
    return [
        f"{other} of {len(there)} rows were measured by other code of this version; another --out measures all anew"
    ]


def _is_file(value: object) -> bool:
    return isinstance(value, str) and Path(value).is_file()


def _so_far(info: Mapping[str, Any], key: str) -> list[list[float | None]]:
    """The scores of the steps before this one; a fold that an older version began did not measure all of them."""
    steps = len(info.get("retention", []))
    found: list[list[float | None]] = info.get(key, [[None] * (step + 1) for step in range(steps)])
    return found


def _bounds_so_far(info: Mapping[str, Any]) -> list[dict[str, list[float]]]:
    """The intervals of those steps, with the same exception."""
    found: list[dict[str, list[float]]] = info.get(_BOUNDS, [{} for _ in info.get("retention", [])])
    return found


def _kept(info: Mapping[str, Any]) -> dict[str, Any]:
    """The efficacy of each chunk after each step, and what it comes to; under its name the same of the free-running
    one."""
    own, *rest = (
        (
            name,
            {
                "scores": [list(row) for row in info[key]],
                "intervals": [bounds.get(name) for bounds in _bounds_so_far(info)],
                **asdict(retention(info[key])),
            },
        )
        for name, key in _FOLLOWED.items()
        if key in info
    )
    return own[1] | dict(rest)
