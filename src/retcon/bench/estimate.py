"""How long a cell will take: as long as others like it took, a fact and a case; else a rough guess."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from retcon.bench.cells import Cell
from retcon.bench.words import as_json
from retcon.lm import LM

__all__ = ["Estimate", "Source", "Timings", "timing"]

Source = Literal["measured", "this folder", "earlier runs", "a rough guess"]
_ORDER: tuple[Source, ...] = ("measured", "this folder", "earlier runs", "a rough guess")

_EDIT, _CASE, _PARAMETERS = 1.0, 1.0, 135e6
"""The guess: seconds an edit and a case, of a model of so many parameters on a processor."""
_FASTER = 20.0
"""How many times as fast an accelerator is, in that guess."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, and what they are taken from."""

    seconds: float
    source: Source


def timing(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a finished row tells of speed; None where it tells nothing, or of targets that others had found."""
    if "seconds" not in row or row.get("targets_cached"):
        return None
    model = row["provenance"]["model"]
    return {
        "fingerprint": model["fingerprint"],
        "device": model["device"],
        "method": row["method"],
        "options": row["options"],
        "mode": row["mode"],
        "n": row["n"],
        "edit": row["seconds"]["edit"] - row["seconds"].get("statistics", 0.0),
        "judged": row["judged"],
        "judge": row["seconds"]["judge"],
        "metrics": sorted(row["metrics"]),
    }


class Timings:
    """What is known of speed, of this folder's rows and of earlier runs anywhere."""

    def __init__(self, here: Iterable[Mapping[str, Any]], earlier: Iterable[Mapping[str, Any]]) -> None:
        """Both hold what `timing` made of rows."""
        self._known: list[tuple[Source, list[Mapping[str, Any]]]] = [
            ("this folder", list(here)),
            ("earlier runs", list(earlier)),
        ]

    def of(self, cell: Cell, lm: LM, n: int, judged: int, metrics: Iterable[str]) -> Estimate:
        """How long a cell will take, on this model."""
        edit = self._edit(cell, lm, n)
        judge = self._judge(lm, judged, sorted(metrics))
        return Estimate(edit.seconds + judge.seconds, max(edit.source, judge.source, key=_ORDER.index))

    def _edit(self, cell: Cell, lm: LM, n: int) -> Estimate:
        """As a cell of the same model and method took, of the same options where there is one, and of a like size."""
        mode, options = "batch" if cell.chunk is None else "sequential", as_json(cell.options)
        for source, timings in self._known:
            like = [one for one in timings if _same(one, lm) and (one["method"], one["mode"]) == (cell.method, mode)]
            if like:
                best = min(like, key=lambda one: (one["options"] != options, _apart(one["n"], n)))
                return Estimate(best["edit"] / best["n"] * n, source)
        return Estimate(_EDIT * _scale(lm) * n, "a rough guess")

    def _judge(self, lm: LM, judged: int, metrics: list[str]) -> Estimate:
        for source, timings in self._known:
            like = [one for one in timings if _same(one, lm) and one["metrics"] == metrics]
            if like:
                best = min(like, key=lambda one: _apart(one["judged"], judged))
                return Estimate(best["judge"] / best["judged"] * judged, source)
        return Estimate(_CASE * _scale(lm) * judged, "a rough guess")


def _same(one: Mapping[str, Any], lm: LM) -> bool:
    return bool(one["fingerprint"] == lm.fingerprint() and one["device"].partition(":")[0] == lm.device.type)


def _apart(one: int, other: int) -> float:
    return abs(math.log(one / other))


def _scale(lm: LM) -> float:
    parameters = sum(parameter.numel() for parameter in lm.model.parameters())
    return parameters / _PARAMETERS / (1.0 if lm.device.type == "cpu" else _FASTER)
