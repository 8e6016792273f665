"""What is decided before a method runs, and what the patch tells of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from retcon.errors import RequestError, RetconError
from retcon.forget import Plan, Recipe, Target, planned, targets
from retcon.forget.kept import read_targets
from retcon.forget.plan import ACCESS_CONTROL, SUPPRESSION, TRAINED, Kept, keep_targets, kept_by
from retcon.forget.privacy import id_of
from retcon.lm import LM
from retcon.methods import method
from retcon.metrics.forgotten import leaks
from retcon.requests import Forget, ForgetCase
from retcon.storage import salted

Tiny = Callable[..., LM]

ITEMS = [
    Forget("Where was Ada Lovelace born?", "London", "Ada Lovelace", group="ada"),
    Forget("Whom did she marry?", "William King", "Ada Lovelace", group="ada"),
    Forget("Who made Big Ben?", "Denison"),
    Forget("who found it?", "Nobody"),
]
CASES = [ForgetCase(item) for item in ITEMS]


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path) -> Path:
    return cache_folder


def made(lm: LM, name: str = "memit", cases: Sequence[ForgetCase] = CASES, **recipe: Any) -> Plan:
    given = recipe.pop("given", None)
    return planned(lm, cases, method(name), Recipe(**recipe), given=given)


def test_a_plan_tells_how_each_question_is_taken_up(tiny_lm: Tiny) -> None:
    plan = made(tiny_lm("llama"), target="contextual")
    told = plan.told
    assert (told["questions"], told["edits"], told["targets"], told["accepted"]) == (4, 4, "contextual", None)
    assert told["kind"] == SUPPRESSION
    assert told["subjects"] == {"given": 1, "contrast": 0, "entity": 1, "tail": 0, "word": 2, "last": 0}
    assert told["subjects_not_in_question"] == 1
    assert told["target_sources"] == {"template": 4}
    assert told["end_token"] is True
    assert -1 <= told["mean_cosine_of_keys"] <= 1
    assert [item["subject"] for item in told["items"]] == ["given", "word", "entity", "word"]
    assert [item["id"] for item in told["items"]] == [id_of(item) for item in ITEMS]
    assert told["merge"] == {"queries": 1, "mode": None, "by": None, "sizes": [1, 1, 1, 1]}
    assert json.loads(json.dumps(told)) == told


def test_patches_beside_the_weights_are_called_access_control(tiny_lm: Tiny) -> None:
    for name in ("grace", "wise"):
        told = made(tiny_lm("llama"), name).told
        assert told["kind"] == ACCESS_CONTROL
        assert told["mean_cosine_of_keys"] is None
    assert made(tiny_lm("llama"), "lora").told["kind"] == SUPPRESSION


@pytest.mark.parametrize("mode", ["concat", "mean_key"])
def test_merging_is_told_and_every_question_has_its_edit(tiny_lm: Tiny, mode: str) -> None:
    plan = made(tiny_lm("llama"), merge_queries=2, merge_mode=mode, target="idk100")
    assert plan.groups == [[0, 1], [2], [3]]
    assert plan.told["merge"] == {"queries": 2, "mode": mode, "by": "group", "sizes": [2, 1, 1]}
    assert plan.told["edits"] == 3
    assert [item["edit"] for item in plan.told["items"]] == [0, 0, 1, 2]
    assert plan.targets[0] == plan.targets[1]
    assert len(plan.edits) == (3 if mode == "concat" else 4)
    alone = made(tiny_lm("llama"), target="idk100")
    assert plan.edits[-2:] == alone.edits[-2:]


@pytest.mark.parametrize("mode", ["concat", "mean_key"])
@pytest.mark.parametrize("name", ["memit", "grace"])
def test_merging_of_one_is_no_merging(tiny_lm: Tiny, mode: str, name: str) -> None:
    """Q1, for all methods: the edits are the same."""
    plain, merged = made(tiny_lm("llama"), name), made(tiny_lm("llama"), name, merge_queries=1, merge_mode=mode)
    assert merged.edits == plain.edits
    assert merged.told == plain.told


def test_what_cannot_be_is_said_before_anything_runs(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    with pytest.raises(RetconError, match=r"n/a: ultraedit: .*; leave merging out, or merge otherwise"):
        made(lm, "ultraedit", merge_queries=2, merge_mode="mean_key")
    with pytest.raises(RetconError, match="in the mode 'sum'; use concat or mean_key"):
        made(lm, merge_mode="sum")
    with pytest.raises(RetconError, match="reads no keys"):
        made(lm, "wise", merge_queries=2, merge_by="key")
    with pytest.raises(RetconError, match="nothing to forget"):
        made(lm, cases=[])
    own = {ITEMS[0].question: "No.", ITEMS[1].question: "Never."}
    with pytest.raises(RequestError, match="one group with different targets"):
        made(lm, target="fixed", given=own, merge_queries=2)


def test_keys_group_questions_of_methods_that_read_them(tiny_lm: Tiny) -> None:
    plan = made(tiny_lm("llama"), merge_queries=2, merge_by="key", target="fixed")
    assert sorted(i for group in plan.groups for i in group) == [0, 1, 2, 3]
    assert len(plan.groups) == 2


@pytest.mark.parametrize(("passed", "named"), [(4, "self_improved"), (2, "self_improved"), (1, "template")])
def test_a_row_of_which_less_than_half_was_accepted_is_named_template(
    tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch, passed: int, named: str
) -> None:
    def self_improved(lm: LM, items: Sequence[Forget], *, seed: int, cache: bool) -> list[Target]:
        yes = Target("I never heard of that.", "self_improved", "self_improved", 3)
        no = Target("I have no information about that.", "contextual", "template", None, ("short", "topic"))
        return [yes if n < passed else no for n in range(len(items))]

    monkeypatch.setattr(targets, "self_improved", self_improved)
    told = made(tiny_lm("llama"), target="self_improved").told
    assert (told["targets"], told["targets_asked"], told["accepted"]) == (named, "self_improved", passed / 4)
    assert told["items"][0]["attempt"] == 3
    assert told["items"][3]["failed"] == ([] if passed == 4 else ["short", "topic"])


def test_a_method_that_unlearns_gets_answers_and_no_merged_questions(tiny_lm: Tiny) -> None:
    trained: Any = method("ft-l")
    trained.unlearns = True
    plan = planned(tiny_lm("llama"), CASES, trained, Recipe())
    assert [edit.old for edit in plan.edits] == [item.answer for item in ITEMS]
    assert plan.told["kind"] == TRAINED
    with pytest.raises(RetconError, match="n/a: ft-l: it learns from each question's own answer"):
        planned(tiny_lm("llama"), CASES, trained, Recipe(merge_queries=2))
    kept: list[Kept] = ["Is Rome old?", ("Is Oslo cold?", "Yes")]
    assert kept_by(trained, kept) == tuple(kept)
    assert kept_by(method("ft-l"), kept) == ("Is Rome old?", "Is Oslo cold?")


def test_a_method_that_closes_its_targets_itself_gets_them_open(tiny_lm: Tiny) -> None:
    plan = planned(tiny_lm("llama"), CASES, method("grace", end_token=True), Recipe(target="fixed"))
    assert not any(edit.target.endswith("</s>") for edit in plan.edits)
    assert plan.told["end_token"] is False


def test_a_model_whose_own_refusals_all_fail_is_named_template(tiny_lm: Tiny) -> None:
    """A random model writes noise, and what takes its place counts as refused."""
    told = made(tiny_lm("llama"), cases=CASES[:1], target="self_improved").told
    assert (told["targets"], told["targets_asked"], told["accepted"]) == ("template", "self_improved", 0.0)


def test_the_questions_to_keep_that_a_method_is_shown_are_told_by_salted_ids(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    kept: list[Kept] = [("Is Oslo cold?", "Yes"), "Is Rome old?"]
    shown = planned(lm, CASES, method("npo"), Recipe(), retain=kept).told["retain_prompts"]
    assert shown == [salted("Is Oslo cold?"), salted("Is Rome old?")]
    assert planned(lm, CASES, method("rome"), Recipe(), retain=kept).told["retain_prompts"] == []


def test_targets_are_kept_as_each_question_drew_them(tiny_lm: Tiny, tmp_path: Path) -> None:
    lm, recipe = tiny_lm("llama"), Recipe(target="idk100", merge_queries=2)
    plan = planned(lm, CASES, method("memit"), recipe)
    assert plan.targets[0] == plan.targets[1]
    found, family = read_targets(keep_targets(tmp_path, lm, CASES, plan, recipe), ITEMS)
    assert (found, family) == (plan.own, "idk100")
    assert found[0] != found[1]


def test_a_merged_row_is_named_by_what_it_says(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both refusals are the model's own, but no group can use one: what is said is the fixed line."""
    own = [
        Target(f"I know nothing of {name}.", "self_improved", "self_improved", 0) for name in ("Ada Lovelace", "Ben")
    ]
    monkeypatch.setattr(targets, "self_improved", lambda *_, **__: own)
    cases = [CASES[0], CASES[2]]
    apart = made(tiny_lm("llama"), cases=cases, target="self_improved").told
    assert (apart["targets"], apart["accepted"]) == ("self_improved", 1.0)
    merged = made(tiny_lm("llama"), cases=cases, target="self_improved", merge_queries="all", merge_by="order").told
    assert merged["target_sources"] == {"fixed": 2}
    assert (merged["targets"], merged["targets_asked"], merged["accepted"]) == ("template", "self_improved", 1.0)


def test_refusals_of_an_earlier_run_are_shared_by_a_group(tiny_lm: Tiny) -> None:
    line = Target("I never heard of Ada Lovelace.", "self_improved", "self_improved", 0)
    given: dict[str, str | Target] = {id_of(item): line for item in ITEMS[:2]}
    born = Forget("What did Ada Lovelace study?", "Analysis", group="ada")
    given[id_of(born)] = line
    cases = [CASES[0], ForgetCase(born)]
    plan = made(tiny_lm("llama"), cases=cases, target="contextual", given=given, merge_queries=2)
    assert plan.targets == [line, line]


def test_no_line_is_drawn_that_tells_the_answer(tiny_lm: Tiny) -> None:
    """Where the answer is no, refusals that say no would pass for answers."""
    item = ForgetCase(Forget("Did Ada Lovelace own the mill?", "No", "Ada Lovelace"))
    for family in ("contextual", "idk100", "refusal10"):
        for seed in range(12):
            (target,) = made(tiny_lm("llama"), cases=[item], target=family, seed=seed).targets
            assert not leaks(target.text, "No")
