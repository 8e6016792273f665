"""Cases as questions in token ids."""

from pathlib import Path

import pytest

from retcon import tokens
from retcon.errors import RetconError
from retcon.evaluate.plan import FLUENCY_CASES, WINDOW, make, pairs, read, resolve, text_pairs
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
    assert resolve(["score"]) == {"score", "efficacy", "generalization", "specificity"}
    assert resolve(list(METRICS)) == set(METRICS)
    with pytest.raises(RetconError, match="no metric 'accuracy'; choose from efficacy, "):
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
