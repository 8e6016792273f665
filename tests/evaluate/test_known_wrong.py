"""Ways of judging that reference code is known to get wrong, and that need a model to show; ours beside them."""

import pytest

from retcon import tokens
from retcon.evaluate import evaluate
from retcon.evaluate.answers import place
from retcon.evaluate.plan import make, resolve
from retcon.lm import LM
from retcon.requests import Case, Edit, Probe
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer


def end_of_joined_text(lm: LM, prompt: str, target: str) -> list[int]:
    """The last tokens of prompt and target as one text, as many as " target" has alone."""
    whole = lm.tokenizer(f"{prompt}{target}", add_special_tokens=False)["input_ids"]
    alone = lm.tokenizer(f" {target}", add_special_tokens=False)["input_ids"]
    return list(whole[-len(alone) :])


@pytest.mark.parametrize("kind", ["fast", "sentencepiece"])
def test_the_border_of_prompt_and_answer_does_not_move(lm: LM, kind: str) -> None:
    some = LM.wrap(lm.model, tiny_tokenizer(kind))
    prompt, target = "It is (", "the city"
    alone = list(some.tokenizer(f" {target}", add_special_tokens=False)["input_ids"])
    assert end_of_joined_text(some, prompt, target) != alone  # misaligned: even the right answer would be a miss
    question = make(some, [Case(Edit(prompt, target=target))], resolve(["efficacy"]), [], None).cases[0].edit
    start = tokens.encode(some, prompt)
    assert list(question.prompt) == start
    assert list(question.prompt + question.new) == [*start, *tokens.target_ids(some, prompt, target)]


def test_a_neighbour_that_the_model_never_knew_is_no_harm(lm: LM) -> None:
    """Against the data set's answer an unedited model would already have done harm."""
    case = Case(tiny_edits(1)[0], neighbours=(Probe("The river is in", ("no such place",)),))
    report = evaluate(lm, [case], metrics=["specificity", "specificity_gen", "neighbourhood_kl"], cache=False)
    assert report.metrics == {"specificity": 1.0, "specificity_gen": None, "neighbourhood_kl": 0.0}
    assert report.details["specificity_gen"] == {"neighbours": 1, "answered_right_before": 0}


def test_a_set_that_is_smaller_than_what_was_asked_for_says_so(lm: LM) -> None:
    report = evaluate(lm, [Case(edit) for edit in tiny_edits(3)], sample=10_000, metrics=["efficacy"], cache=False)
    assert (report.n, report.provenance["cases"]["scored"]) == (3, 3)


def test_answers_of_one_state_of_a_model_are_not_taken_for_another(lm: LM) -> None:
    """A cache by the model's name or by the case's number would."""
    other = LM.wrap(tiny_model("llama", seed=1), tiny_tokenizer(), name=lm.name)
    assert place(other) != place(lm)
