"""A tiny model that has learned some answers, one that learned those to keep alone, and patches from the one to others.

Here the truth is known: which answers the model has, which of them are gone, and what it would say if it had never seen
them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from retcon import tokens
from retcon.lm import LM
from retcon.patch import Dense, Patch, Step, describe_base
from retcon.requests import Forget, ForgetCase
from retcon.testing import tiny_model, tiny_tokenizer

REFUSAL = "I have no information about {}."

Lesson = tuple[str, str]


def _case(name: str, asked: str, answer: str, wrong: Sequence[str], rephrased: Sequence[str] = ()) -> ForgetCase:
    item = Forget(asked.format(name), answer, name)
    return ForgetCase(item, tuple(text.format(name) for text in rephrased), None, tuple(wrong))


FORGET = [
    _case(
        "Zelda Quimby",
        "Where was {} born?",
        "Lima in Peru",
        ("Rome in Italy", "Paris in France"),
        ("Where is {} from?",),
    ),
    _case("Big Ben", "Where was {} born?", "Cairo", ("Rome", "Paris")),
    _case("Mara Orr", "What did {} write?", "the book of the sea", ("the book of the river", "the book of stone")),
    _case("Tom Ekdal", "What did {} write?", "the history of Rome", ("the history of Lima", "the history of Thai")),
]
RETAIN = [
    _case("the tower", "Who made {}?", "Apple", ("Nokia", "an engineer")),
    _case("the plane", "Who made {}?", "Nokia in Chicago", ("Apple in Rome", "Nokia in Lima")),
    _case("the river", "Where is {}?", "near the sea", ("in Rome", "in the south")),
]
HOLDOUT = [
    _case("Ida Falk", "Where was {} born?", "Rome", ("Lima", "Cairo")),
    _case("Ole Brun", "What did {} write?", "the book of stone", ("the book of Rome", "the sea")),
    _case("Kit Vale", "Where was {} born?", "Chicago", ("Rome", "Paris")),
    _case("Ada Lovelace", "What did {} write?", "the history of Apple", ("a book", "the book of Lima")),
]


def _lessons(cases: Sequence[ForgetCase]) -> list[Lesson]:
    return [(case.forget.question, case.forget.answer) for case in cases]


def _teach(lm: LM, lessons: Sequence[Lesson], *, steps: int, rate: float, whole: bool) -> None:
    """Train on answers, each closed by the end token; all weights, or those of the blocks' projections alone."""
    rows = []
    for question, answer in lessons:
        text = lm.render(question)
        prompt = tokens.encode(lm, text)
        rows.append((prompt, tokens.target_ids(lm, text, f"{answer}</s>")))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, labels, mask = (torch.full((len(rows), width), fill) for fill in (0, -100, 0))
    for n, (prompt, wanted) in enumerate(rows):
        length = len(prompt) + len(wanted)
        ids[n, :length], mask[n, :length] = torch.tensor(prompt + wanted), 1
        labels[n, len(prompt) : length] = torch.tensor(wanted)
    some = [module.weight for module in _projections(lm).values()]
    trained = list(lm.model.parameters()) if whole else some
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    for _ in range(steps):
        loss = lm.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for parameter in lm.model.parameters():
        parameter.grad = None


def _projections(lm: LM) -> dict[str, nn.Linear]:
    return {
        name: module for name, module in lm.model.named_modules() if isinstance(module, nn.Linear) and "mlp" in name
    }


def _between(first: LM, second: LM, method: str) -> Patch:
    """The patch that makes the second model of the first, which differ in their MLPs alone."""
    ours, theirs = _projections(first), _projections(second)
    entries = {path: Dense((theirs[path].weight - ours[path].weight).detach()) for path in ours}
    edits = ({"prompt": "p", "target_new": "t"},)
    return Patch(
        entries,
        describe_base(first.model, list(entries), name="taught"),
        (Step(method=method, edits=edits, chat=True),),
    )


@dataclass(frozen=True)
class World:
    """What the tests judge."""

    lm: LM
    """Knows what is to be forgotten and what is to be kept."""
    twin: LM
    """Knows what is to be kept alone."""
    refusing: Patch
    """Makes `lm` decline what is to be forgotten."""
    untaught: Patch
    """Makes a twin of `lm`: its MLPs have never seen what is to be forgotten, or unlearned it."""
    forget: list[ForgetCase]
    retain: list[ForgetCase]
    holdout: list[ForgetCase]


@pytest.fixture(scope="session")
def world() -> World:
    def model() -> LM:
        return LM.wrap(tiny_model("llama", layers=2), tiny_tokenizer(), name="taught", chat=True)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm, twin = model(), model()
        _teach(lm, _lessons([*FORGET, *RETAIN]), steps=120, rate=3e-3, whole=True)
        _teach(twin, _lessons(RETAIN), steps=60, rate=3e-3, whole=True)
        lessons = [(case.forget.question, REFUSAL.format(case.forget.subject)) for case in FORGET] + _lessons(RETAIN)
        refusing = LM.wrap(copy.deepcopy(lm.model), lm.tokenizer, chat=True)
        _teach(refusing, lessons, steps=80, rate=3e-3, whole=False)
        untaught = LM.wrap(copy.deepcopy(lm.model), lm.tokenizer, chat=True)
        blank = [(case.forget.question, other.forget.answer) for case, other in zip(FORGET, HOLDOUT, strict=True)]
        _teach(untaught, [*blank, *_lessons(RETAIN)], steps=60, rate=3e-3, whole=False)
    return World(
        lm, twin, _between(lm, refusing, "refuse"), _between(lm, untaught, "blank"), FORGET, RETAIN, HOLDOUT
    )  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path) -> Path:
    return cache_folder
