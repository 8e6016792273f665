"""Query merging: which questions go together, what a group says, and what the engine makes of shared shifts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import forward, tokens
from retcon.errors import RequestError, RetconError
from retcon.forget import merging
from retcon.forget.merging import cut_long, grouped, merged_text, shared_target, why_not
from retcon.forget.subjects import find_subjects
from retcon.forget.target import Target
from retcon.forget.targets import FIXED, drawn
from retcon.lm import LM
from retcon.methods import METHODS, method
from retcon.metrics.texts import mentions
from retcon.patch import Patch
from retcon.requests import Edit, Forget
from retcon.testing import tiny_edits

Tiny = Callable[..., LM]

ITEMS = [
    Forget("Where was Ada Lovelace born?", "London", group="x", id="0"),
    Forget("Who made Big Ben?", "Denison", id="1"),
    Forget("Whom did Ada Lovelace marry?", "King", id="2"),
    Forget("Where does Big Ben stand?", "London", id="3"),
    Forget("What did Babbage build?", "Engines", group="x", id="4"),
    Forget("When was Ada Lovelace born?", "1815", group="x", id="5"),
]
QUICK: dict[str, Any] = {"steps": 3, "templates": 1, "layers": (2,), "statistics": "none", "rounds": 1}
QUICK |= {"stop_probability": None, "precision": "float32"}
SHARING = ("memit", "rome", "emmet", "pmet", "alphaedit", "memit-blue", "ece", "eamet")


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path) -> Path:
    return cache_folder


# ---- groups


def test_by_default_questions_of_one_group_or_else_one_subject_go_together() -> None:
    subjects = find_subjects(ITEMS)
    assert grouped(ITEMS, subjects, None, "group") == [[0, 4, 5], [1, 3], [2]]
    assert grouped(ITEMS, subjects, 2, "group") == [[0, 4], [1, 3], [2], [5]]
    assert grouped(ITEMS, subjects, 1, "group") == [[0], [1], [2], [3], [4], [5]]


def test_neighbours_go_together_in_order() -> None:
    assert grouped(ITEMS, find_subjects(ITEMS), 4, "order") == [[0, 1, 2, 3], [4, 5]]
    assert grouped(ITEMS, find_subjects(ITEMS), None, "order") == [[0, 1, 2, 3, 4, 5]]


def test_random_groups_go_by_the_seed() -> None:
    subjects = find_subjects(ITEMS)
    made = [grouped(ITEMS, subjects, 2, "random", seed=seed) for seed in range(5)]
    assert made[0] == grouped(ITEMS, subjects, 2, "random", seed=0)
    assert len({str(groups) for groups in made}) > 1


def test_like_keys_go_together() -> None:
    keys = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.9, 0.1, 0], [0, 0, 1], [0, 0.9, 0.2], [0.1, 0, 1]])
    assert grouped(ITEMS, find_subjects(ITEMS), 2, "key", keys=keys) == [[0, 2], [1, 4], [3, 5]]
    with pytest.raises(RetconError, match="reads no keys at subjects"):
        grouped(ITEMS, find_subjects(ITEMS), 2, "key")


@pytest.mark.parametrize("way", ["group", "order", "random", "key"])
@pytest.mark.parametrize("size", [1, 2, 3, 8, None])
def test_every_question_is_in_one_group_of_at_most_the_size(way: str, size: int | None) -> None:
    """Q6: without a rule of what belongs together there are as few groups as there can be."""
    keys = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    groups = grouped(ITEMS, find_subjects(ITEMS), size, way, keys=keys)
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert all(len(group) <= (size or 6) for group in groups)
    if way != "group":
        assert len(groups) == -(-6 // (size or 6))


def test_wrong_ways_and_sizes_are_refused() -> None:
    with pytest.raises(RetconError, match="cannot be merged by 'luck'; use one of group, order, random, key"):
        grouped(ITEMS, find_subjects(ITEMS), 2, "luck")
    with pytest.raises(RetconError, match="0 questions cannot be merged"):
        grouped(ITEMS, find_subjects(ITEMS), 0, "order")


def test_long_prompts_are_cut(tiny_lm: Tiny) -> None:
    lm, whole = tiny_lm("llama"), [0, 1, 2, 3]
    most = len(tokens.encode(lm, merged_text(ITEMS, [0, 1])))
    groups = cut_long(lm, ITEMS, [whole, [5]], most)
    assert [i for group in groups for i in group] == [0, 1, 2, 3, 5]
    assert groups[0] == [0, 1]
    assert all(len(tokens.encode(lm, merged_text(ITEMS, group))) <= most for group in groups)
    assert cut_long(lm, ITEMS, [whole]) == [whole]
    assert cut_long(lm, ITEMS, [whole], 1) == [[0], [1], [2], [3]]


# ---- the one target


def said(lm: LM, family: str, members: list[int], *targets: Target) -> Target:
    alone = [targets[i % len(targets)] for i in range(len(ITEMS))]
    return shared_target(lm, ITEMS, find_subjects(ITEMS), alone, members, family, 0)


def test_a_group_draws_one_line_and_a_member_alone_keeps_its_own(tiny_lm: Tiny) -> None:
    lm, own = tiny_lm("llama"), Target("Mine.", "idk100", "idk100")
    assert said(lm, "idk100", [1, 3], own) == drawn("idk100", [ITEMS[1], ITEMS[3]], 0)
    assert said(lm, "idk100", [1], own) == own
    assert "Big Ben" in said(lm, "contextual", [1, 3], own).text
    assert said(lm, "contextual", [1, 2], own).text == FIXED


def test_the_users_targets_must_agree_in_a_group(tiny_lm: Tiny) -> None:
    """Q7: before any weight is touched."""
    lm = tiny_lm("llama")
    one, other = (Target(text, "avoidant", "given") for text in ("No.", "Ask Ben."))
    assert said(lm, "avoidant", [0, 1], one) == one
    with pytest.raises(RequestError, match=r"born\?' and 1 more are one group with different targets"):
        said(lm, "avoidant", [0, 1], one, other)
    mixed = Target(FIXED, "fixed", "fixed")
    with pytest.raises(RequestError, match="different targets"):
        said(lm, "fixed", [0, 1], one, mixed)


def test_of_what_the_model_wrote_the_likeliest_that_serves_all_is_taken(
    tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_leak(item: Forget, text: str) -> SimpleNamespace:
        return SimpleNamespace(ok=not mentions(text, item.answer))

    def names_topic(item: Forget, text: str) -> SimpleNamespace:
        return SimpleNamespace(ok="Ada" not in text or "Ada" in item.question)

    checks = {"no_leak": no_leak, "names_topic": names_topic, "nothing_invented": no_leak}
    monkeypatch.setattr(merging, "CHECKS", checks)
    lm = tiny_lm("llama")
    texts = ["I never heard of Ada Lovelace.", "It was not London.", "I know nothing of her.", "I am not sure at all."]
    wrote = [Target(text, "self_improved", "self_improved", 1) for text in texts]
    wrote.append(Target("I can't say.", "self_improved", "template"))
    alone = [wrote[n] for n in (0, 1, 2, 3, 4, 4)]
    for members, fits in (([0, 1, 2, 3], (2, 3)), ([0, 2, 5], (0, 2))):
        found = shared_target(lm, ITEMS, find_subjects(ITEMS), alone, members, "self_improved", 0)
        losses = {}
        for n in fits:
            total = 0.0
            for i in members:
                ids = tokens.target_ids(lm, ITEMS[i].question, texts[n])
                ((one,),) = forward.score(lm, [(tokens.encode(lm, ITEMS[i].question), [ids])])
                total -= sum(one.logprobs) / len(ids)
            losses[n] = total
        assert found == wrote[min(losses, key=losses.__getitem__)]
    assert shared_target(lm, ITEMS, find_subjects(ITEMS), alone, [4, 5], "self_improved", 0).text == FIXED


# ---- the engine


def fact(edit: Edit, tie: str | None = "t") -> Edit:
    return replace(edit, target="Rome", tie=tie)


def options(name: str) -> dict[str, Any]:
    if name == "memit-blue":
        return QUICK | {"layers": (1, 2)}
    return QUICK


def changes(patch: Patch) -> Tensor:
    factors = [(entry.U.double(), entry.V.double()) for _, entry in sorted(patch.entries.items())]  # type: ignore[attr-defined]
    return torch.cat([(U @ V.T).flatten() for U, V in factors])


def difference(one: Tensor, other: Tensor) -> float:
    """Of two changes, relative; they are kept in fp32."""
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", SHARING)
def test_a_tie_of_one_is_bit_identical_to_none(tiny_lm: Tiny, name: str) -> None:
    """Q1."""
    lm, (one, other) = tiny_lm("llama"), tiny_edits(2)
    plain = method(name, **options(name)).edit(lm, [fact(one, None), fact(other, None)])
    tied = method(name, **options(name)).edit(lm, [fact(one, "t"), fact(other, "u")])
    assert tied.id == plain.id


@pytest.mark.parametrize("name", SHARING)
def test_members_share_one_shift_and_their_order_changes_nothing(tiny_lm: Tiny, name: str) -> None:
    """Q4; and alone they would not have found it."""
    lm, edits = tiny_lm("llama", torch.float64), [fact(edit) for edit in tiny_edits(3)]
    made = method(name, **options(name)).edit(lm, edits)
    lengths = [record["delta_norm"] for record in made.info["facts"]]
    assert max(lengths) - min(lengths) < 2e-4
    turned = method(name, **options(name)).edit(lm, edits[::-1])
    assert difference(changes(turned), changes(made)) < 1e-5
    apart = method(name, **options(name)).edit(lm, [fact(edit, None) for edit in edits])
    assert difference(changes(apart), changes(made)) > 1e-2


def test_copies_of_one_query_are_one_edit_of_rome(tiny_lm: Tiny) -> None:
    """Q2."""
    lm, (edit,) = tiny_lm("llama", torch.float64), tiny_edits(1)
    one = method("rome", **QUICK).edit(lm, [fact(edit)])
    copies = method("rome", **QUICK).edit(lm, [fact(edit)] * 4)
    assert len(copies.history) == 1
    assert difference(changes(copies), changes(one)) < 1e-6


def test_copies_of_one_query_are_one_column_at_a_smaller_ridge_of_memit(tiny_lm: Tiny) -> None:
    """Q3: N columns at lambda, one at lambda / N; not one at lambda."""
    lm, (edit,) = tiny_lm("llama", torch.float64), tiny_edits(1)

    def made(copies: int, ridge: float) -> Tensor:
        return changes(method("memit", ridge=ridge, **QUICK).edit(lm, [fact(edit)] * copies))

    assert difference(made(4, 80.0), made(1, 20.0)) < 1e-6
    assert difference(made(4, 80.0), made(1, 80.0)) > 1e-2


def test_rome_makes_one_step_a_tie(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(4)
    asked = [fact(edits[0], "t"), fact(edits[1], None), fact(edits[2], "t"), fact(edits[3], None)]
    made = method("rome", **QUICK).edit(lm, asked)
    assert [[record["id"] for record in step.edits] for step in made.history] == [
        ["tiny-0", "tiny-2"],
        ["tiny-1"],
        ["tiny-3"],
    ]
    assert [entry.rank for entry in made.entries.values()] == [3]


def test_a_second_round_takes_up_the_whole_of_a_tie(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from retcon.methods import locate_and_edit

    monkeypatch.setattr(locate_and_edit, "_TAKEN_UP", 1)
    lm, edits = tiny_lm("llama"), [fact(edit, "t" if n in (0, 2) else None) for n, edit in enumerate(tiny_edits(4))]
    again = QUICK | {"rounds": 2, "again": 0.01, "stop_probability": 0.9}
    rounds = [record["rounds"] for record in method("memit", **again).edit(lm, edits).info["facts"]]
    assert sum(rounds) - 4 == (2 if rounds[0] == 2 else 1)
    assert rounds[0] == rounds[2]


def test_methods_that_cannot_share_a_shift_say_why() -> None:
    shared = {name for name in METHODS if why_not(method(name), "mean_key") is None}
    assert shared >= set(SHARING)
    assert not shared & {"grace", "wise", "ultraedit", "ft-l", "lora"}
    assert str(why_not(method("grace"), "mean_key")).startswith("n/a: grace: edits of one answer share a value")
    assert str(why_not(method("ft-l"), "mean_key")) == "n/a: ft-l: it seeks no shift that edits could share"
    for name in METHODS:
        unlearns = getattr(METHODS[name], "unlearns", False)
        assert (why_not(method(name), "concat") is None) is not unlearns, name
