"""Our own small tasks: written for Retcon, so that no network and no licence stands between an edit and its judge.

They are easy, so that even a small model is above chance and has something to lose; they rank no models.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from retcon.evaluate.answers import Answers, Pair
from retcon.evaluate.plan import Encoder
from retcon.lm import LM

__all__ = ["TASKS", "Item", "load", "right"]

TASKS: dict[str, str] = {
    "arithmetic": "Sums and differences of numbers up to 20 (of four), and the larger of two numbers; 100 items.",
    "word_order": "How a sentence goes on: its own words in order, or in one of three other orders; 80 items.",
    "common_sense": "The last word of a sentence on everyday things, of two; 101 items.",
}
"""What each asks for."""


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and how it may go on."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    """Which of them is right."""


@cache
def load(name: str) -> tuple[Item, ...]:
    """The items of a task of `TASKS`."""
    text = resources.files("retcon.evaluate.ability").joinpath("data", f"{name}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return tuple(Item(row["prompt"], tuple(row["choices"]), row["answer"]) for row in rows)


def right(lm: LM, items: Sequence[Item], answers: Answers) -> list[float]:
    """1.0 for each item whose right choice has the highest summed log probability after the prompt, else 0.0.

    A tie is a miss.

    Args:
        lm: the model that `answers` asks, for its tokenizer.
        items: of one task.
        answers: asks the model as it is now.
    """
    encoder = Encoder(lm)
    asked: list[list[Pair]] = [
        [(encoder.ids(item.prompt), encoder.target(item.prompt, choice)) for choice in item.choices] for item in items
    ]
    scores = answers.score([pair for pairs in asked for pair in pairs])
    found = []
    for item, pairs in zip(items, asked, strict=True):
        totals = [sum(scores[pair].logprobs) for pair in pairs]
        own = totals.pop(item.answer)
        found.append(float(all(own > other for other in totals)))
    return found
