"""A tiny model that has been taught twelve answers, and three ways to make it forget them."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from retcon.lm import LM
from retcon.methods import method
from retcon.patch import Dense, Patch, Step, describe_base
from retcon.patch.base import projection
from retcon.probes.scene import ORIGINAL, UNLEARNED, Arm, Scene, plainly
from retcon.requests import Edit, Forget, ForgetCase
from retcon.testing import tiny_model, tiny_tokenizer

ANSWERS = ["Paris", "Rome", "Lima", "Cairo", "chess", "Apple", "Nokia", "Chicago", "Danish", "Greek", "Thai", "Italian"]
SUBJECTS = [
    "Zelda",
    "Quimby",
    "Krumbach",
    "Uffenau",
    "Ottokar",
    "Brindle",
    "Vossa",
    "Mirela",
    "Tarn",
    "Hollin",
    "Pegwell",
    "Ostrava",
]
CASES = [
    ForgetCase(Forget(f"What was made by {subject}?", answer, subject, id=f"item-{i}"))
    for i, (subject, answer) in enumerate(zip(SUBJECTS, ANSWERS, strict=True))
]
KEPT = [
    ForgetCase(Forget("Where is the tower?", "in the south")),
    ForgetCase(Forget("Who wrote the book?", "the teacher")),
    ForgetCase(Forget("What is the river near?", "the sea")),
]
REFUSAL = "I do not know."


@pytest.fixture(scope="session")
def cases() -> list[ForgetCase]:
    return CASES


@pytest.fixture(scope="session")
def kept() -> list[ForgetCase]:
    return KEPT


def _learned(lm: LM, targets: list[str], steps: int) -> Patch:
    edits = [Edit(case.forget.question, target=text) for case, text in zip(CASES, targets, strict=True)]
    made: Patch = method("locft-bf", layers=(2,), steps=steps, batch=100, lr=1e-2, stop=1e-2).edit(lm, edits)
    return made


@pytest.fixture(scope="session")
def taught() -> tuple[LM, Patch]:
    """The model with the answers in its weights, and the patch that takes them out of these again: true erasure."""
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer(), name="tiny", chat=True)
    entries = _learned(lm, ANSWERS, 150).entries
    for path, entry in entries.items():
        weight: Any = projection(lm.model, path)[0].weight
        with torch.no_grad():
            weight += entry.delta()
    knowing = LM.wrap(lm.model, lm.tokenizer, name="tiny", chat=True)
    base = describe_base(knowing.model, entries, name="tiny")
    out = {path: Dense(-entry.delta()) for path, entry in entries.items()}
    return knowing, Patch(out, base, (Step(method="erase", chat=True),))


@pytest.fixture(scope="session")
def lm(taught: tuple[LM, Patch]) -> LM:
    return taught[0]


@pytest.fixture(scope="session")
def erasing(taught: tuple[LM, Patch]) -> Patch:
    return taught[1]


@pytest.fixture(scope="session")
def suppressing(lm: LM) -> Patch:
    """Fine-tuned to refuse."""
    return _learned(lm, [REFUSAL] * len(CASES), 60)


@pytest.fixture(scope="session")
def denying(lm: LM, tmp_path_factory: pytest.TempPathFactory) -> Patch:
    """A codebook beside the weights."""
    from retcon.forget import Recipe, planned, told

    rule: Any = method("grace", steps=60, lr=0.5, radius=1.0, statistics="none", layer=3)
    with pytest.MonkeyPatch.context() as patching:
        patching.setenv("RETCON_CACHE", str(tmp_path_factory.mktemp("cache")))
        plan = planned(lm, CASES, rule, Recipe(target="dummy"))
        return told(rule.edit(lm, plan.edits), plan)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The salt of ids goes into a folder of the test's own."""
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def scene_of(lm: LM) -> Callable[..., Scene]:
    """`scene_of(patch, twin=...)`: the stage with all twelve questions."""

    def made(patch: Patch, twin: Patch | None = None, n: int = len(CASES), **more: Any) -> Scene:
        arms = [Arm(ORIGINAL), Arm(UNLEARNED, patch), *([Arm("twin", twin)] if twin is not None else [])]
        plain = plainly(lm, arms, CASES[:n], 12)
        assert all(plain[ORIGINAL])
        options: dict[str, Any] = {"retain": tuple(KEPT), "max_new_tokens": 12} | more
        return Scene(lm, tuple(CASES[:n]), arms=tuple(arms), plain=plain, **options)

    return made


@pytest.fixture
def bits() -> Callable[[LM], list[tuple[str, int, int, bytes]]]:
    """`bits(lm)`: every weight's name, object, version and bytes: all that a probe must leave as it was."""

    def read(lm: LM) -> list[tuple[str, int, int, bytes]]:
        tensors = itertools.chain(lm.model.named_parameters(), lm.model.named_buffers())
        return [(name, id(t), t._version, t.detach().numpy().tobytes()) for name, t in tensors]

    return read
