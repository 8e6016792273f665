"""The sequences of one fact's search."""

from collections.abc import Sequence
from dataclasses import dataclass

from retcon import tokens
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.requests import Edit

__all__ = ["Row", "rows_of"]


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence of a fact's search."""

    ids: list[int]
    """The prompt's ids, and all target ids but the last; the essence row ends at its subject."""
    site: int
    """Index of the subject's last token."""
    target: list[int]
    """The target's ids; empty for the essence row."""
    fact: int
    """Index of the fact in the batch."""
    weight: float = 1.0
    """Share of the row in the fact's negative log-likelihood."""
    template: int = 0
    """Which template the row begins with; rows of one template share their first tokens."""


def rows_of(lm: LM, edit: Edit, templates: Sequence[str], fact: int, *, essence: bool = True) -> list[Row]:
    """The rows of one fact: its prompt under each template ("" is the bare prompt), then the essence row.

    Raises:
        RequestError: the edit has no subject, or its target has no token.
    """
    if edit.subject is None:
        raise RequestError(f"{edit.prompt!r} has no subject; this method needs one: write the subject as {{}}")
    text = lm.render(edit.text)
    target = tokens.target_ids(lm, text, edit.target)
    rows = []
    for index, template in enumerate(templates):
        located = tokens.locate_subject(lm, edit.prompt, edit.subject, template)
        rows.append(Row(located.ids + target[:-1], located.site, target, fact, 1 / len(templates), index))
    if essence:
        located = tokens.locate_subject(lm, "{} is a", edit.subject)
        rows.append(Row(located.ids[: located.site + 1], located.site, [], fact))
    return rows
