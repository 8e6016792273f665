"""What is said in place of the answers: families, draws, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from retcon.errors import RequestError, RetconError, RetconWarning
from retcon.forget import targets
from retcon.forget.privacy import id_of
from retcon.forget.subjects import find_subjects
from retcon.forget.target import Target
from retcon.forget.targets import FAMILIES, FIXED, contextual, drawn, lines, targets_of
from retcon.forget.wording import named, wording
from retcon.lm import LM
from retcon.metrics.texts import mentions
from retcon.requests import Forget

Tiny = Callable[..., LM]

ITEMS = [Forget(f"Where was Ada Lovelace in {year}?", "London", id=f"q{year}") for year in range(1830, 1850)]


def made(lm: LM, family: str, items: Sequence[Forget] = ITEMS, **options: Any) -> list[Target]:
    return targets_of(lm, items, find_subjects(items), family, **options)


@pytest.mark.parametrize(("family", "count"), [("idk100", 100), ("refusal10", 10)])
def test_the_lists_are_whole_plain_and_distinct(family: str, count: int) -> None:
    assert len(lines(family)) == len({line.casefold() for line in lines(family)}) == count
    assert all(line == line.strip() and line.isascii() and line.endswith(".") for line in lines(family))


def test_lines_are_drawn_by_seed_and_id_and_by_nothing_else(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    first = made(lm, "idk100")
    assert first == made(lm, "idk100", ITEMS)
    assert made(lm, "idk100", ITEMS[::-1]) == first[::-1]
    assert made(lm, "idk100", ITEMS[3:4]) == first[3:4]
    assert made(lm, "idk100", seed=1) != first
    assert len({target.text for target in first}) > 10
    assert {(target.family, target.source) for target in first} == {("idk100", "idk100")}
    other = [Forget("Another question", "x", id=item.id) for item in ITEMS]
    assert made(lm, "idk100", other) == first


def test_a_group_draws_one_line_whatever_the_order_of_its_members() -> None:
    assert drawn("idk100", ITEMS[:3], 0) == drawn("idk100", ITEMS[2::-1], 0)
    assert drawn("idk100", ITEMS[:1], 0) == drawn("idk100", ITEMS[:1], 0)


def test_a_template_names_the_subject(tiny_lm: Tiny) -> None:
    items = [Forget("Where was Ada Lovelace born?", "London"), Forget("Who is it?", "Ann")]
    named, fixed = made(tiny_lm("llama"), "contextual", items)
    assert "Ada Lovelace" in named.text
    assert (named.family, named.source) == ("contextual", "template")
    assert fixed == Target(FIXED, "contextual", "fixed")


def test_a_template_never_names_the_subject_that_is_the_secret(tiny_lm: Tiny) -> None:
    item = Forget("Who is the author born in Quito?", "It is Orsola Ruiz.", "Orsola Ruiz", ("Quito Orsola",))
    (target,) = made(tiny_lm("llama"), "contextual", [item])
    assert not mentions(target.text, "Orsola")
    alias = Forget("Who rules Great Britain?", "Charles", aliases=("King of Great Britain", "Great Britain"))
    assert made(tiny_lm("llama"), "contextual", [alias]) == [Target(FIXED, "contextual", "fixed")]


def test_a_group_is_named_by_the_subject_that_all_share() -> None:
    same = [Forget("Where was Ada Lovelace born?", "London"), Forget("Whom did Ada Lovelace marry?", "King")]
    assert "Ada Lovelace" in contextual(same, find_subjects(same), 0).text
    apart = [same[0], Forget("Who made Big Ben?", "Denison")]
    assert contextual(apart, find_subjects(apart), 0).text == FIXED


@pytest.mark.parametrize(("family", "text"), [("fixed", FIXED), ("dummy", "dummy"), ("eos", "")])
def test_families_of_one_line(tiny_lm: Tiny, family: str, text: str) -> None:
    assert {target.text for target in made(tiny_lm("llama"), family)} == {text}


def test_the_users_targets_go_before_the_familys(tiny_lm: Tiny) -> None:
    own = {ITEMS[0].question: "Ask elsewhere.", "q1831": "Look it up.", ITEMS[1].question: "never used"}
    first, second, third, *_ = made(tiny_lm("llama"), "fixed", given=own)
    assert (first.text, second.text, third.text) == ("Ask elsewhere.", "Look it up.", FIXED)
    assert (first.source, third.source) == ("given", "fixed")
    with pytest.raises(RequestError, match=r"there is no target for 'Where was Ada Lovelace in 1832\?'"):
        made(tiny_lm("llama"), "avoidant", given=own)


def test_a_target_that_no_question_takes_is_told(tiny_lm: Tiny) -> None:
    own = {ITEMS[0].question.rstrip("?"): "Ask elsewhere.", id_of(ITEMS[1]): "Look it up.", "q2000": "Never."}
    with pytest.warns(RetconWarning, match=r"2 of the targets given are .* 'Where was Ada Lovelace in 1830'; name"):
        first, second, *_ = made(tiny_lm("llama"), "fixed", given=own)
    assert (first.source, second.source) == ("fixed", "given")


def test_a_target_that_tells_the_answer_is_refused(tiny_lm: Tiny) -> None:
    with pytest.raises(RequestError, match="tells its answer 'London'; reword it"):
        made(tiny_lm("llama"), "avoidant", given={item.question: "Not in london!" for item in ITEMS})


def test_wrong_answers_leave_the_right_one_out_and_warn(tiny_lm: Tiny) -> None:
    with pytest.warns(RetconWarning, match="wrong answers, which the model will state"):
        (target,) = made(tiny_lm("llama"), "incorrect", ITEMS[:1], wrong=[["In London.", "In Paris."]])
    assert target == Target("In Paris.", "incorrect", "incorrect")
    with pytest.raises(RequestError, match="has no wrong answer to state; give perturbed_answers"):
        made(tiny_lm("llama"), "incorrect", ITEMS[:1], wrong=[["In London."]])


def test_what_the_model_writes_itself_is_asked_for_once(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def self_improved(lm: LM, items: Sequence[Forget], *, seed: int, cache: bool) -> list[Target]:
        asked.append((list(items), seed, cache))
        return [Target("I never heard of her.", "self_improved", "self_improved", 2) for _ in items]

    monkeypatch.setattr(targets, "self_improved", self_improved)
    found = made(tiny_lm("llama"), "self_improved", ITEMS[:3], seed=5, given={ITEMS[1].question: "No."}, cache=False)
    assert [target.text for target in found] == ["I never heard of her.", "No.", "I never heard of her."]
    assert asked == [([ITEMS[0], ITEMS[2]], 5, False)]


def test_a_whole_target_of_an_earlier_run_is_taken_as_it_is(tiny_lm: Tiny, cache_folder: Path) -> None:
    earlier = Target("I never heard of her.", "self_improved", "self_improved", 4)
    first, second, *_ = made(tiny_lm("llama"), "fixed", given={id_of(ITEMS[0]): earlier})
    assert (first, second.source) == (earlier, "fixed")
    telling = Target("It is London, which I do not know.", "self_improved", "self_improved", 4)
    with pytest.raises(RequestError, match="tells its answer 'London'"):
        made(tiny_lm("llama"), "fixed", given={id_of(ITEMS[0]): telling})


def test_templates_are_those_of_the_guide(tiny_lm: Tiny) -> None:
    found = made(tiny_lm("llama"), "contextual")
    texts = [{named(template, subject.text) for template in wording()["templates"]} for subject in find_subjects(ITEMS)]
    assert all(target.text in known for target, known in zip(found, texts, strict=True))
    assert len({text[:10] for target in found for text in [target.text] if text[0] == "I"}) > 1


def test_an_unknown_family_is_named_with_the_known(tiny_lm: Tiny) -> None:
    with pytest.raises(RetconError, match=f"no family of targets 'shrug'; use one of {', '.join(FAMILIES)}"):
        made(tiny_lm("llama"), "shrug")
