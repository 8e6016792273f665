"""How much of a forward a model lets the search save: found out once, by a probe against whole rows."""

from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from retcon.arch import frozen
from retcon.lm import LM
from retcon.values.clean import prepare
from retcon.values.config import Path, SearchConfig
from retcon.values.loss import evaluate
from retcon.values.rows import Row
from retcon.values.sites import first_block

__all__ = ["fast_path"]

_FILLER = [6, 9, 7, 10, 8, 11, 5, 9] * 64


def fast_path(lm: LM, config: SearchConfig) -> Path:
    """The fastest way to search that gives this model's loss and gradient; probed once against whole rows.

    `shared`: tokens that rows have in common run once, the rest of what stands before the site once a row, and each
    evaluation only the tokens from the site on, in the blocks above it. `cached`: without the first of these, for
    models that measure distance by cache slot (sliding windows, some ALiBi). `whole`: whole rows through the whole
    model, for models with recurrence, a cache of their own kind, or blocks that cannot be entered half-way; slower,
    the same result.

    Raises:
        UnsupportedModel: the site is not there in this family.
    """
    if not 1 <= first_block(config) < lm.arch.n_layers:
        return "whole"
    key = f"fast_path_{config.site}"
    if key not in lm.notes:
        lm.notes[key] = _probe(lm, config)
    found: Path = lm.notes[key]
    return found


def _probe(lm: LM, config: SearchConfig) -> Path:
    """Loss and gradient of two made-up facts along each path, at a shift that is not zero."""
    rows = _made_up(lm.arch.window)
    exact = replace(config, precision="float32")

    def run(path: Path) -> Tensor:
        with frozen(lm.model):
            base, chunks = prepare(lm, rows, 2, exact, 64, path)
            noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(0)).to(base)
            delta = 0.1 * base.norm(dim=-1, keepdim=True) * F.normalize(noise, dim=-1)
            seen = evaluate(lm, chunks, delta, exact)
        return torch.cat([seen.value, seen.gradient.flatten() * base.norm()])

    wanted = run("whole")
    tolerance = 1e-3 if lm.dtype in (torch.float32, torch.float64) else 5e-2
    ways: tuple[Path, ...] = ("shared", "cached")
    for path in ways:
        try:
            found = run(path)
        except (AttributeError, TypeError, ValueError, IndexError, RuntimeError, KeyError):
            continue  # the model does not take part in this way of running it
        if (found - wanted).norm() <= tolerance * wanted.norm():
            return path
    return "whole"


def _made_up(window: int | None) -> list[Row]:
    """Rows of two facts under two templates, one of them with tokens in common, and an essence row."""
    rows = [
        Row([5, 9, 7, 6, 8, 11], 3, [8, 11, 6], 0),
        Row([6, 7, 10, 5], 1, [5, 9], 1),
        Row([6, 9, 7, 10, 8, 5, 11, 9, 5], 5, [9, 5], 0, 0.5, 1),
        Row([6, 9, 7, 10, 8, 9, 5, 11, 9, 5], 7, [9, 5], 1, 0.5, 1),
        Row([9, 8, 5], 2, [], 1),
    ]
    filler = _FILLER[:window] if window is not None else []  # long enough for the window to matter
    return [replace(row, ids=filler + row.ids, site=row.site + len(filler)) for row in rows]
