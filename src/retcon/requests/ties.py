"""Edits that are to share one shift."""

from collections.abc import Sequence

from retcon.requests.nouns import Edit

__all__ = ["tied"]


def tied(edits: Sequence[Edit]) -> list[list[int]]:
    """Positions of the edits, those of one tie together, in the order of their first.

    >>> tied([Edit("A", target="x", tie="t"), Edit("B", target="y"), Edit("C", target="x", tie="t")])
    [[0, 2], [1]]
    """
    units: dict[object, list[int]] = {}
    for n, edit in enumerate(edits):
        units.setdefault(n if edit.tie is None else edit.tie, []).append(n)
    return list(units.values())
