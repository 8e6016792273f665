"""Cases as questions in token ids."""

from pathlib import Path

import pytest

from retcon import tokens
from retcon.errors import RetconError
from retcon.evaluate.generating import MOST_TOKENS, budget
from retcon.evaluate.plan import (
    FLUENCY_CASES,
    WINDOW,
    asked_freely,
    make,
    neighbour_openings,
    pairs,
    read,
    resolve,
    text_pairs,
)
from retcon.lm import LM
from retcon.metrics import METRICS
from retcon.requests import Case, Edit, Probe
from retcon.testing import tiny_model, tiny_tokenizer

EDIT = Edit("{} is in the city of", "the Blue Tower", "Rome", "Paris")
CASE = Case(EDIT, ("The city of the Blue Tower is",), (Probe("Big Ben is in", ("London", "the city of London")),))
TEXT = "The tower is located in the city of Paris. " * 40


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


def test_score_brings_its_parts_and_unknown_names_are_refused() -> None:
    assert resolve(["score_gen"]) == {"score_gen", "efficacy_gen", "generalization_gen", "specificity_gen"}
    assert resolve(["score"]) == {"score", "efficacy", "generalization", "specificity"}
    assert resolve(list(METRICS)) == set(METRICS)
    with pytest.raises(RetconError, match="no metric 'accuracy'; choose from efficacy_gen, "):
        resolve(["accuracy"])


def test_questions_hold_the_ids_that_the_model_sees(lm: LM) -> None:
    plan = make(lm, [CASE], resolve(list(METRICS)), ["It rained"], TEXT)
    edit, [prefixed], [neighbour] = plan.cases[0].edit, plan.cases[0].prefixed, plan.cases[0].neighbours
    assert list(edit.prompt) == tokens.encode(lm, EDIT.text)
    assert tokens.decode(lm, [*edit.prompt, *edit.new]) == f"{EDIT.text} Rome"
    assert [tokens.decode(lm, [*edit.prompt, *ids]) for ids in edit.true] == [f"{EDIT.text} Paris"]
    assert tokens.decode(lm, list(prefixed.prompt)) == f"It rained. {EDIT.text}"
    assert [tokens.decode(lm, list(ids)) for ids in neighbour.true] == [" London", " the city of London"]
    assert neighbour.new == edit.new


def test_chat_renders_every_prompt(lm: LM) -> None:
    chat = LM.wrap(lm.model, tiny_tokenizer("fast"), chat=True)
    plan = make(chat, [CASE], resolve(list(METRICS)), ["It rained"], TEXT)
    case = plan.cases[0]
    for question in (case.edit, *case.prefixed, *case.paraphrases, *case.neighbours):
        assert list(question.prompt) == tokens.encode(chat, chat.render(question.text))
    assert case.opening == tuple(tokens.encode(chat, chat.render(EDIT.text)))


def test_nothing_is_asked_that_no_figure_needs(lm: LM) -> None:
    plan = make(lm, [CASE], resolve(["efficacy"]), [], TEXT)
    assert list(pairs(plan, {})) == [(plan.cases[0].edit.prompt, plan.cases[0].edit.new)]
    assert (plan.windows, plan.cases[0].paraphrases, plan.cases[0].opening) == ((), (), None)


def test_a_case_without_content_has_no_questions(lm: LM) -> None:
    bare = Case(Edit("Lima is in", target="Peru"))
    plan = make(lm, [bare], resolve(list(METRICS)), [], TEXT)
    case = plan.cases[0]
    assert (case.edit.true, case.prefixed, case.paraphrases, case.neighbours) == ((), (), (), ())


def test_a_neighbour_whose_answer_is_the_new_one_has_no_preference(lm: LM) -> None:
    case = Case(EDIT, neighbours=(Probe("The Colosseum is in", ("Rome",)),))
    plan = make(lm, [case], resolve(["specificity_prob"]), [], None)
    assert plan.cases[0].neighbours[0].true == ()
    assert list(pairs(plan, {})) == []


def test_free_text_begins_with_the_first_generation_prompt_for_a_stated_number_of_cases(lm: LM) -> None:
    case = Case(EDIT, generation_prompts=("The Blue Tower stands", "Near the Blue Tower"))
    plan = make(lm, [case, CASE] * FLUENCY_CASES, resolve(["fluency"]), [], None)
    assert plan.cases[0].opening == tuple(tokens.encode(lm, "The Blue Tower stands"))
    assert plan.cases[1].opening == tuple(tokens.encode(lm, EDIT.text))
    assert sum(one.opening is not None for one in plan.cases) == FLUENCY_CASES


def test_aliases_and_answers_are_accepted_where_the_model_writes_freely(lm: LM) -> None:
    hops = (Probe("The country of the tower is", ("Italy", "Italia"), "two-hop"), Probe("Its river is", ("Tiber",)))
    case = Case(EDIT, CASE.paraphrases, CASE.neighbours, portability=hops, aliases=("Roma", "the city of Rome"))
    made = make(lm, [case], resolve(["efficacy_gen", "generalization_gen", "portability_gen"]), [], None).cases[0]
    assert made.edit.accepted == made.paraphrases[0].accepted == ("Rome", "Roma", "the city of Rome")
    asked = [(one.accepted, one.kind) for one in made.portability]
    assert asked == [(("Italy", "Italia"), "two-hop"), (("Tiber",), None)]
    longest = max(len(tokens.target_ids(lm, EDIT.text, name)) for name in made.edit.accepted)
    assert made.edit.most == budget(longest) <= MOST_TOKENS
    assert made.neighbours == ()
    [only] = make(lm, [case], resolve(["two_hop_gen"]), [], None).cases[0].portability
    assert only.kind == "two-hop"


def test_neighbours_are_asked_freely_where_the_unedited_model_is_right(lm: LM) -> None:
    plan = make(lm, [CASE], resolve(["specificity_gen"]), [], None)
    near = plan.cases[0].neighbours[0]
    assert neighbour_openings(plan) == {near.prompt: near.most}
    assert asked_freely(plan, {near.prompt: "London, of course"}) == {near.prompt: near.most}
    assert asked_freely(plan, {near.prompt: "Leeds"}) == asked_freely(plan, {}) == {}


def test_an_answer_that_ends_the_text_is_looked_for_without_its_end_token(lm: LM) -> None:
    edit = Edit("{} is in the city of", "the Blue Tower", f"Rome{lm.tokenizer.eos_token}")
    assert make(lm, [Case(edit)], resolve(["efficacy_gen"]), [], None).cases[0].edit.accepted == ("Rome",)


def test_a_prompt_without_room_for_an_answer_is_not_asked_freely(lm: LM) -> None:
    case = Case(Edit("in the city " * 90 + "{} is", "Rome", "old"))
    assert asked_freely(make(lm, [case], resolve(["efficacy_gen"]), [], None), {}) == {}


def test_running_text_stands_before_the_edit_prompt(lm: LM) -> None:
    plan = make(lm, [CASE], resolve(["efficacy"]), [], None, {0: [], 5: ["It rained", "He ran."]})
    (none, [bare]), (five, behind) = plan.cases[0].passages
    assert (none, bare.prompt, five) == (0, plan.cases[0].edit.prompt, 5)
    texts = [tokens.decode(lm, list(one.prompt)) for one in behind]
    assert texts == [f"It rained. {EDIT.text}", f"He ran. {EDIT.text}"]
    assert {(one.prompt, one.new) for one in (bare, *behind)} <= set(pairs(plan, {}))
    with pytest.raises(RetconError, match="256 tokens"):
        make(lm, [CASE], resolve(["efficacy"]), [], None, {300: ["in the city " * 90]})


def test_text_that_would_not_fit_the_model_is_not_written(lm: LM) -> None:
    case = Case(EDIT, generation_prompts=("in the city " * 70,))
    assert make(lm, [case], resolve(["fluency"]), [], None).cases[0].opening is None


@pytest.mark.parametrize(("kind", "given"), [("bos", 1), ("fast", 1)])
def test_windows_score_each_token_once_behind_what_begins_a_text(kind: str, given: int, lm: LM) -> None:
    some = LM.wrap(lm.model, tiny_tokenizer(kind))
    start = tokens.special_ids(some)[0]
    found = text_pairs(some, TEXT)
    assert all(len(prompt) == given for prompt, _ in found)
    body = tokens.encode(some, TEXT)[len(start) :]
    if start:
        assert [token for _, scored in found for token in scored] == body
        assert {prompt for prompt, _ in found} == {tuple(start)}
    else:
        assert [token for prompt, scored in found for token in (*prompt, *scored)] == body
    assert max(len(prompt) + len(scored) for prompt, scored in found) <= min(WINDOW, 256)  # the model's positions


def test_the_shipped_text_is_of_about_two_thousand_words() -> None:
    assert 1_500 <= len(read(None).split()) <= 2_500


def test_a_text_comes_from_a_file_or_is_given(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Some text.", encoding="utf-8")
    assert read(tmp_path / "text.txt") == read("Some text.") == "Some text."
    with pytest.raises(RetconError, match="cannot be read"):
        read(tmp_path / "none.txt")
    with pytest.raises(RetconError, match="empty"):
        read("  \n")
