"""What the tests of the search share: loss and gradient along a path, and agreement row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from retcon import values
from retcon.arch import frozen
from retcon.lm import LM
from retcon.requests import Edit
from retcon.values import Path, SearchConfig
from retcon.values.clean import prepare
from retcon.values.loss import evaluate

TEMPLATES = ("", "The. ", "Because I am in the city. ")


def evaluated(
    lm: LM, edits: Sequence[Edit], config: SearchConfig, path: Path, chunk_tokens: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """A shift a fact, as long as a third of the state, and loss and gradient there along one of the fast paths."""
    rows = [row for i, edit in enumerate(edits) for row in values.rows_of(lm, edit, TEMPLATES, i)]
    with frozen(lm.model):
        base, chunks = prepare(lm, rows, len(edits), config, chunk_tokens, path)
        noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(1), dtype=base.dtype)
        delta = base.norm(dim=-1, keepdim=True) / 3 * F.normalize(noise, dim=-1)
        seen = evaluate(lm, chunks, delta, config)
    return delta, seen.value, seen.gradient


def agree(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Row by row: a fact that is wrong does not hide behind those that are right."""
    assert found.shape == wanted.shape
    error = (found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1).clamp_min(1e-9)
    assert error.max() <= tolerance, error.tolist()


# Tests are imported without a package, so what they share comes to them as fixtures.


@pytest.fixture(name="evaluated")
def _evaluated() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return evaluated


@pytest.fixture(name="agree")
def _agree() -> Callable[[Tensor, Tensor, float], None]:
    return agree
