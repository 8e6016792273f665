"""What changed between two answers, word by word."""

from difflib import SequenceMatcher

from markupsafe import Markup, escape

__all__ = ["marked"]

_ALIKE = 0.3
"""Below this likeness two answers have only small words in common, and marking between them tells nothing."""


def marked(before: str, after: str) -> tuple[Markup, Markup]:
    """Both answers as HTML: words that went in `<del>`, words that came in `<ins>`.

    >>> marked("in Paris, France", "in Rome, Italy")[1]
    Markup('in <ins>Rome, Italy</ins>')
    """
    old, new = before.split(), after.split()
    match = SequenceMatcher(None, old, new, autojunk=False)
    if old == new:
        return escape(before), escape(after)
    if match.ratio() < _ALIKE:
        return _wrapped("del", old), _wrapped("ins", new)
    went: list[Markup] = []
    came: list[Markup] = []
    for kind, a, b, c, d in match.get_opcodes():
        went.append(escape(" ".join(old[a:b])) if kind == "equal" else _wrapped("del", old[a:b]))
        came.append(escape(" ".join(new[c:d])) if kind == "equal" else _wrapped("ins", new[c:d]))
    return Markup(" ").join(filter(None, went)), Markup(" ").join(filter(None, came))


def _wrapped(tag: str, words: list[str]) -> Markup:
    return Markup("<{0}>{1}</{0}>").format(tag, " ".join(words)) if words else Markup("")
