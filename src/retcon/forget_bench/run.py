"""The bench: teach, forget in many ways, judge each against a model that never knew."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from retcon import storage
from retcon.bench.folding import folds, held
from retcon.bench.rows import Rows
from retcon.bench.words import as_json, slug
from retcon.bench.work import Job, sentence, work
from retcon.errors import RetconError
from retcon.forget.plan import keep_targets, kept_by, planned, told
from retcon.forget_bench.cells import Cell, configured
from retcon.forget_bench.corpus import Split
from retcon.forget_bench.judge import FIGURES, Evaluation, Judge
from retcon.forget_bench.rows import rows
from retcon.forget_bench.teach import Teaching, merged, teach, teaching_key
from retcon.lm import LM
from retcon.memory import peak_memory_mb
from retcon.methods import Method
from retcon.metrics.texts import mentions
from retcon.patch import Patch
from retcon.requests import ForgetCase
from retcon.storage import digest
from retcon.targets import Store

__all__ = ["BEFORE", "TWIN", "Bench"]

BEFORE, TWIN = "before", "retain-only twin"
"""The rows of the model before it forgets, and of the one that never knew."""

_TRAINING = ("steps", "best", "stopped", "readings")
"""What a row tells of a run of an objective, with every look at it; a `best` of 0 is a patch that changes nothing."""
_APART = ("items", "retain_prompts")
"""What a patch tells of single questions."""
_TELLING = 6
"""Letters of an answer from which on it tells something when it stands in a sentence."""


@dataclass(eq=False)
class Bench:
    """One setting, a model that knows a corpus, and the rows that are measured in it."""

    lm: LM
    """The model, bare."""
    split: Split
    cells: Sequence[Cell]
    folder: Path
    """Where rows, patches and reports go."""
    teaching: Teaching | None = None
    """How the corpus is taught; None where the model knows it."""
    max_new_tokens: int = 40
    """The length of judged answers."""
    seed: int = 0
    """Of what is drawn by recipes, methods and the judge."""
    judge: Judge = field(default_factory=Evaluation)
    cache: bool = True
    """Whether what is taught, targets and answers of the unedited model are looked up and kept on disk."""
    _patches: dict[str, Patch] = field(default_factory=dict, init=False, repr=False)
    """What the model, `taught`, and its twin, `twin`, have learned."""
    _reference: Any = field(default=None, init=False, repr=False)
    """What the twin makes of what it was not taught."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RetconError(f"answers of {self.max_new_tokens} tokens say nothing; take at least 1")

    def run(self) -> list[dict[str, Any]]:
        """All rows, in order: those that are there already are taken, those that failed are tried again.

        A row that fails says why, and the rest are finished. `rows.jsonl` and `rows.md` are written row by row, a
        patch a row under `patches`, the judge's whole reports under `reports`.

        Raises:
            RetconError: the folder holds rows of another setting, or teaching failed.
        """
        for who in ("taught", "twin") if self.left() else ():
            self._learned(who)  # where teaching fails there is no row at all
        return work(self._rows(), [self._job(name, cell) for name, cell in self.plan()], said=self._unquoted)

    def plan(self) -> list[tuple[str, Cell | None]]:
        """The rows by name; those without a cell are models as they are."""
        own = [BEFORE, TWIN] if self.teaching else [BEFORE]
        return [*((name, None) for name in own), *((cell.name, cell) for cell in self.cells)]

    def left(self) -> list[str]:
        """Names of the rows that are not there yet.

        Raises:
            RetconError: the folder holds rows of another setting.
        """
        known = self._rows()
        return [name for name, cell in self.plan() if known.done(self._key(name, cell)) is None]

    # --------------------------------------------------------------------------------------------- names

    def _rows(self) -> Rows:
        return rows(self.folder, self._setting())

    def _setting(self) -> str:
        """Hash of all that the rows have in common."""
        model = digest(self.lm.fingerprint(), self.lm.chat)
        if self.teaching is not None:
            model = teaching_key(self.lm, self._corpus(), self.teaching)
        return digest("forget-bench-1", model, self.split.key())[:16]

    def _key(self, name: str, cell: Cell | None) -> str:
        """Hash of all that decides a row: what it is of, and what is asked of it."""
        return digest(self._made(name, cell), FIGURES)[:16]

    def _made(self, name: str, cell: Cell | None) -> str:
        """Hash of all that decides what a row is of."""
        asked = [name, self.max_new_tokens, self.seed]
        options = None if cell is None else asdict(self._method(cell).config)
        return digest(self._setting(), asked, options)[:16]

    def _method(self, cell: Cell) -> Method:
        return configured(cell, self.seed, retain=len(self.split.retain))

    def _corpus(self) -> list[ForgetCase]:
        return [*self.split.forget, *self.split.retain]

    # --------------------------------------------------------------------------------------------- models

    def _learned(self, who: str) -> Patch | None:
        """What the model or its twin was taught, kept in the folder too, for patches stand on it; None if nothing."""
        if self.teaching is None:
            return None
        if who not in self._patches:
            corpus = self._corpus() if who == "taught" else self.split.retain
            self._patches[who] = teach(self.lm, corpus, self.teaching, cache=self.cache)
            self._patches[who].save(self.folder / who)
        return self._patches[who]

    def _measure(self) -> Any:
        """What the twin makes of what it was not taught; None where there is no twin. The model must be bare."""
        twin = self._learned("twin")
        if twin is not None and self._reference is None:
            with merged(self.lm, twin) as lm:
                self._reference = self.judge.reference(lm, self.split, seed=self.seed, cache=self.cache)
        return self._reference

    # --------------------------------------------------------------------------------------------- rows

    def _job(self, name: str, cell: Cell | None) -> Job:
        """One row."""
        key = self._key(name, cell)
        make = partial(self._as_it_is, name) if cell is None else partial(self._forgotten, cell, self._made(name, cell))
        return Job(key, name, _asked(cell), make)

    def _as_it_is(self, name: str) -> dict[str, Any]:
        """A model that has forgotten nothing; the twin is not held against itself."""
        who, reference = ("twin", None) if name == TWIN else ("taught", self._measure())
        with merged(self.lm, self._learned(who)) as lm:
            return self._judged(name, lm, reference, None)

    def _forgotten(self, cell: Cell, key: str) -> dict[str, Any]:
        """A model that was made to forget."""
        method = self._method(cell)
        with merged(self.lm, self._learned("taught")) as lm:
            reason = cell.why_not(lm, method)
            if reason is not None:
                return {"na": reason}
            patch = self._patch(lm, cell, method, key)
        reference = self._measure()  # only now, so that its memory is not counted as the method's
        with merged(self.lm, self._learned("taught")) as lm:
            found = self._judged(cell.name, lm, reference, patch)
        info = patch.info
        spent = {"edit": info["bench"]["seconds"], "plan": info["bench"].get("plan")}
        return {
            **found,
            "seconds": {**spent, **info["seconds"], **found["seconds"]},
            "peak_memory_mb": info["bench"]["peak_memory_mb"],
            "patch": {"id": patch.id, "bytes": patch.size_bytes, "folds": folds(patch)},
            "forget": {name: value for name, value in info["forget"].items() if name not in _APART},
            **({"training": {name: info["unlearning"][name] for name in _TRAINING}} if "unlearning" in info else {}),
        }

    def _patch(self, lm: LM, cell: Cell, method: Method, key: str) -> Patch:
        """The patch of a cell; one that a stopped run has made is taken."""
        home = self.folder / "patches" / slug(cell.name)
        older = held(home)
        if older is not None and older.info.get("bench", {}).get("key") == key:
            return older
        texts = [(case.forget.question, case.forget.answer) for case in self.split.retain]
        stores = [Store.shared() if self.cache else Store(self.folder / "work" / "targets.sqlite")]
        start = time.perf_counter()
        plan = planned(lm, self.split.forget, method, cell.recipe(self.seed), retain=texts, cache=self.cache)
        ready = time.perf_counter()  # refusals that the model writes are written for the first row alone
        made = told(method.edit(lm, plan.edits, retain=kept_by(method, texts), stores=stores), plan)
        spent = {"key": key, "plan": round(ready - start, 3), "seconds": round(time.perf_counter() - ready, 3)}
        spent |= {"peak_memory_mb": peak_memory_mb()}
        patch = replace(made, info={**made.info, "bench": spent})
        patch.save(home)
        keep_targets(home, lm, self.split.forget, plan, cell.recipe(self.seed))
        return patch

    def _judged(self, name: str, lm: LM, reference: Any, patch: Patch | None) -> dict[str, Any]:
        """What the judge says; its whole report goes to a file of its own."""
        start = time.perf_counter()
        report = self.judge.report(
            lm, self.split, patch, reference=reference, max_new_tokens=self.max_new_tokens, seed=self.seed,
            cache=self.cache,
        )  # fmt: skip
        spent = round(time.perf_counter() - start, 3)
        storage.write_json(self.folder / "reports" / f"{slug(name)}.json", report)
        return {
            "metrics": report.get("metrics"),
            "before": report.get("before"),
            **{name: report[name] for name in ("not_finite", "before_not_finite") if report.get(name)},
            "seconds": {"judge": spent},
            "peak_memory_mb": peak_memory_mb(),
        }

    def _unquoted(self, error: Exception) -> str:
        """The error's sentence, unless it tells of the corpus: rows are to be shown."""
        said = sentence(error)
        items = [case.forget for case in self.split.forget]
        secrets = [item.question for item in items] + [item.answer for item in items if len(item.answer) >= _TELLING]
        if any(mentions(said, secret) for secret in secrets):
            return f"a {type(error).__name__} whose words quote the corpus; they were shown on the terminal"
        return said


def _asked(cell: Cell | None) -> dict[str, Any]:
    """What a row is of, in JSON types."""
    if cell is None:
        return {"method": None, "target": None, "merge": 1, "mode": None, "by": None, "options": {}}
    return {
        "method": cell.method,
        "target": cell.target,
        "merge": cell.merge,
        "mode": cell.mode,
        "by": None if cell.merge == 1 else cell.by,
        "options": as_json(cell.options),
    }
