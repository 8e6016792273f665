"""The tasks that ship with Retcon, and their scorer."""

from collections import Counter

import pytest
import torch

from retcon import tokens
from retcon.evaluate.ability.tasks import TASKS, Item, load, right
from retcon.evaluate.answers import Answers
from retcon.lm import LM
from retcon.testing import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_whole_and_its_right_answers_stand_at_all_places_alike(name: str) -> None:
    items = load(name)
    assert len(items) >= 80
    assert f"{len(items)} items" in TASKS[name]
    assert len({item.prompt for item in items}) == len(items)
    places = Counter((len(item.choices), item.answer) for item in items)
    for item in items:
        assert len(set(item.choices)) == len(item.choices) > item.answer
        assert all(choice == choice.strip() and choice for choice in (item.prompt, *item.choices))
    for size in {len(item.choices) for item in items}:
        counts = [places[size, at] for at in range(size)]
        assert max(counts) - min(counts) <= 1


def test_sums_are_right_and_the_larger_number_is_larger() -> None:
    for item in load("arithmetic"):
        line, said = item.prompt.splitlines()[-1], int(item.choices[item.answer])
        if line.startswith("Of "):
            assert said == max(int(word) for word in line.replace(",", "").split() if word.isdigit())
        else:
            one, sign, other = line.removesuffix(" =").split()
            assert said == (int(one) + int(other) if sign == "+" else int(one) - int(other))


def test_wrong_orders_have_the_words_of_the_right_one() -> None:
    for item in load("word_order"):
        words = {tuple(sorted(choice.removesuffix(".").split())) for choice in item.choices}
        assert len(words) == 1


def test_the_likeliest_choice_by_its_sum_is_the_models(lm: LM) -> None:
    items = [Item("The capital of Peru is", ("Lima", "the north of the sea", "Cairo"), at) for at in range(3)]
    ids = tokens.encode(lm, items[0].prompt)

    def total(choice: str) -> float:
        rest = tokens.target_ids(lm, items[0].prompt, choice)
        with torch.no_grad():
            rows = lm.model(torch.tensor([ids + rest])).logits[0].double().log_softmax(-1)
        return float(rows[range(len(ids) - 1, len(ids) + len(rest) - 1), rest].sum())

    totals = [total(choice) for choice in items[0].choices]
    best = totals.index(max(totals))
    assert right(lm, items, Answers(lm)) == [float(at == best) for at in range(3)]


def test_a_tie_is_a_miss(lm: LM) -> None:
    assert right(lm, [Item("The capital of Peru is", ("Lima", "Lima"), 0)], Answers(lm)) == [0.0]
