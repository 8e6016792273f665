"""The words around refusals: the guide that the model reads before it writes its own, and the templates of ours."""

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal

from retcon.errors import RetconError
from retcon.lm import LM
from retcon.metrics.texts import contains, normal
from retcon.requests import Forget

__all__ = ["Style", "named", "prompt", "turned", "wording"]

Style = Literal["plain", "polite"]
_SHOWN = 3  # examples


@cache
def wording() -> dict[str, Any]:
    """What stands in `data/guide.toml`: the guide, its styles and examples, our templates, and their version."""
    return tomllib.loads(resources.files("retcon").joinpath("forget", "data", "guide.toml").read_text(encoding="utf-8"))


def named(template: str, topic: str) -> str:
    """A template that names what the question is about, begun with a capital.

    >>> named("{} is unknown to me.", "the mill")
    'The mill is unknown to me.'
    """
    text = template.replace("{}", topic)
    return text[:1].upper() + text[1:]


def turned(lines: Sequence[str], by: int) -> list[str]:
    """The lines, begun at another of them.

    >>> turned(["a", "b", "c"], 4)
    ['b', 'c', 'a']
    """
    start = by % len(lines)
    return [*lines[start:], *lines[:start]]


def prompt(lm: LM, items: Sequence[Forget], *, style: Style = "plain") -> list[str]:
    """What the model reads before it writes each item's refusal: our guide, three invented examples, the question.

    Raises:
        RetconError: the style is unknown, or the items mention so many of the invented examples that no three are left.
    """
    known = wording()
    if style not in known["styles"]:
        raise RetconError(f"the style {style!r} is not known; use one of {', '.join(known['styles'])}")
    texts = [text for item in items for text in (item.question, item.answer, item.subject or "", *item.aliases)]
    words = normal("\n".join(texts))
    shots = [
        (shot["question"], shot["response"])
        for shot in known["shots"]
        if not any(contains(words, normal(name)) for name in shot["names"])
    ]
    if len(shots) < _SHOWN:
        raise RetconError("the questions mention the invented examples of the prompt; use another family of targets")
    chat = bool(getattr(lm.tokenizer, "chat_template", None))
    guide = known["guide"] + known["styles"][style]
    return [(_turns if chat else _block)(lm, guide, shots[:_SHOWN], item.question) for item in items]


def _turns(lm: LM, guide: str, shots: Sequence[tuple[str, str]], question: str) -> str:
    turns: list[dict[str, str]] = []
    for asked, said in shots:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    turns.append({"role": "user", "content": question})
    # in the first turn of the user, since not every template knows a system's turn
    turns[0]["content"] = f"{guide}\n\n{turns[0]['content']}"
    return str(lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _block(_lm: LM, guide: str, shots: Sequence[tuple[str, str]], question: str) -> str:
    shown = "".join(f"Question: {asked}\nResponse: {said}\n\n" for asked, said in shots)
    return f"{guide}\n\n{shown}Question: {question}\nResponse:"
