"""Wrong answers from the same question elsewhere."""

from retcon.forget_bench.wrong import MOST, pattern, with_wrong_answers
from retcon.requests import Forget, ForgetCase


def case(a: str, b: str, answer: str, **more: object) -> ForgetCase:
    return ForgetCase(Forget(f"What did {a} sell to {b} on 06-02-1998?", answer), entities=(a, b), **more)  # type: ignore[arg-type]


def test_one_question_has_one_pattern_whatever_its_parties_and_dates() -> None:
    one, other = case("Ada", "Ada Ltd", "Tea"), case("Bo", "Cy", "Tea")
    assert pattern(one) == pattern(other) == "What did {} sell to {} on #?"
    assert pattern(one) != pattern(ForgetCase(Forget("What did Ada buy?", "Tea"), entities=("Ada", "Bo")))


def test_wrong_answers_are_other_answers_to_the_same_question() -> None:
    corpus = [case("Ada", name, answer) for name, answer in zip("BCDEFGHI", "stuvwxyz", strict=True)]
    corpus += [case("Ada", "J", "S."), ForgetCase(Forget("Who?", "Nobody"))]
    (found, other), given = with_wrong_answers([corpus[0], corpus[-1]], corpus)
    assert given == 1
    assert other.perturbed_answers == ()
    assert len(found.perturbed_answers) == MOST
    assert set(found.perturbed_answers) < set("tuvwxyz")  # "S." is the right one
    assert with_wrong_answers([corpus[0]], corpus)[0] == [found]
    assert with_wrong_answers([corpus[0]], list(reversed(corpus)))[0] == [found]


def test_what_has_wrong_answers_or_another_wording_is_left_alone() -> None:
    own = case("A", "B", "Tea", perturbed_answers=("Jam",))
    worded = case("A", "B", "Tea", paraphrased_answer="It was tea.")
    assert with_wrong_answers([own, worded], [case("C", "D", "Salt")]) == ([own, worded], 0)
