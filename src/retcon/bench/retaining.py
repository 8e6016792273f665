"""What earlier chunks of a fold still hold after each later one."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from retcon import forward, tokens
from retcon.lm import LM
from retcon.metrics.retention import retention
from retcon.metrics.success import strict
from retcon.metrics.summary import mean
from retcon.patch import Patch
from retcon.requests import Edit

__all__ = ["after_step", "summary"]


def after_step(lm: LM, patch: Patch, edits: Sequence[Edit], chunk: int) -> list[float | None]:
    """The efficacy of each chunk so far, with the patch of all of them on.

    Args:
        lm: the model, without the patch.
        patch: of the first so many of `edits`.
        edits: all edits of the fold.
        chunk: edits of a step.
    """
    done = edits[: len(patch.edits)]
    items = [(tokens.encode(lm, text), [tokens.target_ids(lm, text, edit.target)]) for edit, text in _texts(lm, done)]
    with patch.on(lm.model):
        hits = [strict(found.hits) for (found,) in forward.score(lm, items, label="retention")]
    return [mean(hits[start : start + chunk]) for start in range(0, len(hits), chunk)]


def summary(scores: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """The matrix of a fold's steps, and what it comes to: see `retcon.metrics.retention`."""
    return {"scores": [list(row) for row in scores], **asdict(retention(scores))}


def _texts(lm: LM, edits: Sequence[Edit]) -> list[tuple[Edit, str]]:
    return [(edit, lm.render(edit.text)) for edit in edits]
