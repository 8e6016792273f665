"""Rows of ids of unlike lengths as one tensor with offsets."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from retcon.errors import PatchError

__all__ = ["parts", "ragged", "texts"]


def ragged(kind: str, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Rows of whole numbers as one tensor with offsets, by the names that a `Context` gives them."""
    flat = torch.tensor([value for row in rows for value in row], dtype=torch.long)
    return {f"{kind}_ids": flat, f"{kind}_offsets": torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)}


def texts(pieces: Sequence[Sequence[Sequence[int]]]) -> dict[str, Tensor]:
    """Each fact's text, piece by piece; pieces that facts share are kept once."""
    number: dict[tuple[int, ...], int] = {}
    members = [[number.setdefault(tuple(piece), len(number)) for piece in fact] for fact in pieces]
    return ragged("piece", list(number)) | ragged("member", members)


def parts(ids: Int[Tensor, " q"], offsets: Int[Tensor, " parts_and_1"]) -> tuple[tuple[int, ...], ...]:
    """The rows of such a tensor.

    Raises:
        PatchError: the offsets do not end where it does.
    """
    flat, ends = ids.tolist(), offsets.tolist()
    if not ends or ends[-1] != len(flat):
        raise PatchError("the parts of a context do not fit together; get the patch again")
    return tuple(tuple(flat[begin:end]) for begin, end in pairwise(ends))
