"""Every method by itself: single edits, and what an edit costs. One cell a process; batches are in `matrix`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import common, quality
from benchmarks.matrix import EDITORS
from retcon.lm import LM

TIMED = 20
"""Facts that a method is timed on, nothing cached."""


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
    for name in EDITORS:
        found[f"methods/timing_{name}"] = partial(timing, name)
    for name in EDITORS:
        found[f"methods/counterfact_1_{name}"] = partial(single, name)
    return found
