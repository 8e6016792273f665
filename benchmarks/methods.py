"""Every method on the same facts: what it reaches, what it harms, what it costs. One cell a process."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks import common, quality
from retcon.evaluate import evaluate
from retcon.lm import LM
from retcon.memory import peak_memory_mb
from retcon.methods import METHODS
from retcon.requests import Case, load_cases

ZSRE = common.DATA / "editing" / "zsre_conflict_free.jsonl.gz"
SETS: dict[str, Callable[[int], list[Case]]] = {
    "counterfact": common.cases,
    "zsre": lambda n: list(load_cases(ZSRE, limit=n).items),
}
JUDGED = 200
"""Cases that a large batch is judged on, a seeded sample."""
TIMED = 20
"""Facts that a method is timed on, nothing cached."""
SLOW = {"rome": 100, "wise": 300}
"""Methods that edit one fact after the other, and the most facts that they are given here."""


def batch(name: str, dataset: str, n: int) -> None:
    """One batch of N facts; targets may come from the cache that all methods share, so seconds are told by `timing`."""
    lm = LM.load(common.MODEL)
    cases, method = SETS[dataset](n), common.configured(name)
    patch = method.edit(lm, [case.edit for case in cases], stores=[common.store()])
    peak = peak_memory_mb()
    sample = JUDGED if n > JUDGED else None
    report = evaluate(lm, cases, patch=patch, metrics=quality.METRICS, text=common.TEXT, sample=sample)
    figures = {
        "method": name,
        "set": dataset,
        "n": len(cases),
        **common.reached(report),
        "peak_memory_mb": peak,
        "patch_bytes": patch.size_bytes,
        "notes": common.notes(patch),
        "config": asdict(method.config),
    }
    common.keep(f"methods/{dataset}_{n}_{name}", figures, lm)


def single(name: str) -> None:
    """Single edits, each on the untouched model, in the method's default options."""
    quality.single(name, result=f"methods/counterfact_1_{name}")


def timing(name: str) -> None:
    """Seconds an edit in a batch of 20 facts, nothing cached; statistics, templates and probes are made before."""
    lm = LM.load(common.MODEL)
    method = common.configured(name)
    edits = [case.edit for case in common.cases(TIMED)]
    method.edit(lm, edits[:2])
    patch, seconds = common.timed(lambda: method.edit(lm, edits))
    figures: dict[str, Any] = {
        "method": name,
        "n": TIMED,
        "seconds": patch.info["seconds"],
        "seconds_per_edit": round(seconds / TIMED, 4),
        "edits_per_second": round(TIMED / seconds, 2),
    }
    common.keep(f"methods/timing_{name}", figures, lm)


def cells() -> dict[str, Callable[[], None]]:
    """All cells by the name of their result, the quickest first."""
    found: dict[str, Callable[[], None]] = {}
    editors = [name for name, kind in METHODS.items() if not getattr(kind, "unlearns", False)]
    for name in editors:
        found[f"methods/timing_{name}"] = partial(timing, name)
    for dataset, n in (("counterfact", 100), ("zsre", 100), ("counterfact", 1000)):
        for name in editors:
            if n <= SLOW.get(name, n):
                found[f"methods/{dataset}_{n}_{name}"] = partial(batch, name, dataset, n)
    for name in editors:
        found[f"methods/counterfact_1_{name}"] = partial(single, name)
    return found
