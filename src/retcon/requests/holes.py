"""Texts without the names that nobody is to read in them: each gives way to a hole, which whoever knows it can fill."""

import re
from collections.abc import Sequence

from retcon.requests.nouns import literal

__all__ = ["filled", "masked"]

_HOLE = re.compile(r"\{\{|\}\}|\{(\^?)(\d*)\}")


def masked(text: str, names: Sequence[str]) -> tuple[str, list[str]]:
    """A text with a hole for each name, and the names that it holds besides the first.

    The first name's hole is `{}`, those of others `{1}`, `{2}` ... in the order in which the text names them; `{^}` and
    `{^1}` stand where the name begins with a capital that it has not elsewhere. The text's own braces are doubled.

    Args:
        text: any.
        names: what to leave out, in whatever case; of two that overlap the longer goes first. Those without a letter
            or digit are left in.

    >>> masked("Zelda and Max of {Ulm} are unknown to me; max is.", ["Zelda", "max"])
    ('{} and {^1} of {{Ulm}} are unknown to me; {1} is.', ['max'])
    """
    known = {name.casefold(): name for name in reversed(names) if any(map(str.isalnum, name))}
    if not known:
        return literal(text), []
    longest = sorted(known.values(), key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)", re.IGNORECASE)
    parts: list[str] = []
    used: list[str] = []
    end = 0
    for match in pattern.finditer(text):
        name = known.get(match[0].casefold(), names[0])
        if name != names[0] and name not in used:
            used.append(name)
        number = "" if name == names[0] else str(used.index(name) + 1)
        capital = "^" if match[0] != name and match[0] == _capital(name) else ""
        parts += [literal(text[end : match.start()]), f"{{{capital}{number}}}"]
        end = match.end()
    return "".join([*parts, literal(text[end:])]), used


def filled(text: str, names: Sequence[str]) -> str:
    """The inverse of `masked`, given the first name and those that it told of; a name is put in as it is given.

    Raises:
        IndexError: the text has a hole for a name that is not given.
    """

    def put(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        name = names[int(match[2] or 0)]
        return _capital(name) if match[1] else name

    return _HOLE.sub(put, text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
