"""The corpus of our own: seeded, of the promised shape, with nothing to guess and nothing given away."""

from collections import Counter

import pytest

from retcon.errors import RetconError
from retcon.forget_bench.contracts import ATTRIBUTES, contracts
from retcon.metrics.texts import mentions
from retcon.requests import check_answer, check_forgets


def test_equal_arguments_give_equal_cases_and_seeds_differ() -> None:
    assert contracts(4, seed=3) == contracts(4, seed=3)
    answers = [{case.forget.answer for case in contracts(4, seed=seed)} for seed in (0, 1)]
    parties = [{name for case in contracts(4, seed=seed) for name in case.entities} for seed in (0, 1)]
    assert len(answers[0] & answers[1]) < 0.05 * len(answers[0])
    assert not parties[0] & parties[1]


def test_the_first_contracts_of_a_larger_corpus_are_those_of_a_smaller_one() -> None:
    assert contracts(9)[: 4 * ATTRIBUTES] == contracts(4)
    assert contracts(3, attributes=2) == [case for n in range(3) for case in contracts(3)[n * ATTRIBUTES :][:2]]


def test_each_contract_has_twenty_questions_on_a_pair_of_its_own() -> None:
    cases = contracts(12)
    groups = Counter(case.forget.group for case in cases)
    assert len(groups) == 12
    assert set(groups.values()) == {ATTRIBUTES}
    pairs = {case.forget.group: frozenset(case.entities) for case in cases}
    assert len(set(pairs.values())) == 12
    assert all(len(pair) == 2 for pair in pairs.values())
    assert max(Counter(name for pair in pairs.values() for name in pair).values()) > 1  # a graph, not islands
    assert len({case.forget.id for case in cases}) == len(cases)


def test_each_question_names_the_parties_and_has_two_paraphrases_and_five_wrong_answers() -> None:
    for case in contracts(8, seed=1):
        item, (one, other) = case.forget, case.paraphrases
        assert len({item.question, one, other}) == 3
        for text in (item.question, one, other):
            assert all(party in text for party in case.entities)
            assert not mentions(text, item.answer)
            assert not set("{}") & set(text)
        said = [case.paraphrased_answer or "", *case.perturbed_answers]
        assert len(set(said)) == 6
        assert mentions(said[0], item.answer)
        assert not any(mentions(text, item.answer) for text in said[1:])
        assert not any("{" in text for text in said)


def test_the_questions_can_be_forgotten_as_they_are() -> None:
    items = [case.forget for case in contracts(20)]
    for item in items:
        check_answer(item)
    kept, warnings = check_forgets(items)
    assert (len(kept), warnings) == (len(items), [])


def test_answers_are_not_shared_so_that_one_contract_tells_nothing_of_another() -> None:
    answers = Counter(case.forget.answer for case in contracts(20))
    assert sum(n - 1 for n in answers.values()) < 0.1 * answers.total()


@pytest.mark.parametrize(("edges", "attributes"), [(0, 20), (2, 0), (2, 21)])
def test_a_corpus_that_cannot_be_is_refused(edges: int, attributes: int) -> None:
    with pytest.raises(RetconError, match="no corpus|1 to 20 attributes"):
        contracts(edges, attributes=attributes)
