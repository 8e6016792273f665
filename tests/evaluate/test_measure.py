"""From answers to figures."""

import math

import pytest

from retcon.evaluate.answers import Answers, Ids, Pair
from retcon.evaluate.measure import Values, figures, intervals, measure
from retcon.evaluate.plan import CaseQuestions, Plan, Question
from retcon.forward import Scored
from retcon.lm import LM
from retcon.metrics import METRICS
from retcon.testing import tiny_model, tiny_tokenizer

ALL = frozenset(METRICS)
NEW, OLD, TRUE, SAID = (7,), (8, 9), (5,), (3, 4)


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


class Told(Answers):
    """Answers that the test makes up."""

    def __init__(self, lm: LM, scores: dict[Pair, Scored]) -> None:
        super().__init__(lm)
        self.scores = scores

    def score(self, pairs: object, *, batch_tokens: int = 0) -> dict[Pair, Scored]:
        return self.scores

    def greedy(self, prompts: object, max_new_tokens: int, *, stop_at_eos: bool) -> dict[Ids, Ids]:
        return {}


def question(name: int, *true: Ids) -> Question:
    return Question(f"prompt {name}", (name,), NEW, true)


def case(
    edit: Question,
    prefixed: tuple[Question, ...] = (),
    paraphrases: tuple[Question, ...] = (),
    neighbours: tuple[Question, ...] = (),
) -> CaseQuestions:
    return CaseQuestions(edit, prefixed, paraphrases, neighbours, None)


def hit(*logprobs: float) -> Scored:
    return Scored(list(logprobs), [True] * len(logprobs))


def miss(*logprobs: float) -> Scored:
    return Scored(list(logprobs), [True] * (len(logprobs) - 1) + [False])


def test_each_figure_reads_its_own_prompts(lm: LM) -> None:
    one = case(
        question(1, OLD),
        (question(2), question(3), question(4), question(5)),
        (question(6, OLD), question(7, OLD)),
        (question(8, TRUE), question(9, TRUE, (6, 6)), question(10, TRUE)),
    )
    scores: dict[Pair, Scored] = {
        ((1,), NEW): hit(-0.1),
        ((1,), OLD): miss(-0.3, -0.2),
        ((2,), NEW): hit(-0.1),
        ((3,), NEW): hit(-0.1),
        ((4,), NEW): hit(-0.1),
        ((5,), NEW): miss(-0.1),
        ((6,), NEW): hit(-0.2),
        ((6,), OLD): miss(-3.0, -3.0),
        ((7,), NEW): miss(-2.0),
        ((7,), OLD): hit(-0.5, -0.5),
        ((8,), NEW): miss(-2.0),
        ((8,), TRUE): hit(-1.0),
        ((8,), SAID): hit(-1.0, -1.0),
        ((9,), NEW): miss(-2.0),
        ((9,), TRUE): miss(-3.0),
        ((9,), (6, 6)): miss(-1.0, -1.5),  # a second answer that counts as well
        ((9,), SAID): miss(-1.0, -1.0),
        ((10,), NEW): hit(-1.0),
        ((10,), TRUE): miss(-3.0),
        ((10,), SAID): miss(-1.0, -1.0),
        ((0,), (1, 2)): miss(-1.0, -3.0),
    }
    plan = Plan(ALL, (one,), (((0,), (1, 2)),))
    values = measure(lm, plan, Told(lm, scores), {(n,): SAID for n in (8, 9, 10)})
    assert figures(ALL, values) == {
        "efficacy": 1.0,
        "efficacy_prob": 1.0,
        "efficacy_prefixed": 0.75,
        "generalization": 0.5,
        "generalization_prob": 0.5,
        "specificity": pytest.approx(1 / 3),
        "specificity_prob": pytest.approx(2 / 3),
        "score": pytest.approx(3 / (1 + 2 + 3)),
        "fluency": None,
        "perplexity": pytest.approx(math.exp(2)),
        "log_perplexity": 2.0,
    }
    assert [[asked.text for asked in row] for row in values.missed] == [["prompt 7"]]
    assert [[asked.text for asked in row] for row in values.changed] == [["prompt 9", "prompt 10"]]


def test_the_unedited_model_agrees_with_itself(lm: LM) -> None:
    plan = Plan(frozenset({"specificity"}), (case(question(1), neighbours=(question(2, TRUE),)),), ())
    assert measure(lm, plan, Told(lm, {}), None).cases == [{"specificity": 1.0}]


def test_missing_content_gives_none_never_zero(lm: LM) -> None:
    plan = Plan(ALL, (case(question(1)),), ())
    values = measure(lm, plan, Told(lm, {((1,), NEW): miss(-1.0)}), {})
    found = figures(ALL, values)
    assert found.pop("efficacy") == 0.0
    assert set(found.values()) == {None}


def test_cases_weigh_the_same_however_many_prompts_they_have() -> None:
    values = Values([{"specificity": 1.0}, {"specificity": 0.5}, {"specificity": None}])
    assert figures(frozenset({"specificity"}), values) == {"specificity": 0.75}


def test_intervals_hold_their_figures_and_the_score_has_one() -> None:
    wanted = frozenset({"efficacy", "generalization", "specificity", "score", "perplexity", "log_perplexity"})
    rows: list[dict[str, float | None]] = [
        {"efficacy": float(n % 5 > 0), "generalization": float(n % 3 > 0), "specificity": n % 7 / 6} for n in range(60)
    ]
    windows = [[-1.0 - n / 10] * 20 for n in range(8)] + [[-9.0]]
    values = Values(rows, windows)
    subjects = [None if n % 10 == 0 else f"subject {n}" for n in range(60)]
    means, bounds = figures(wanted, values), intervals(wanted, values, subjects, seed=0)
    assert list(bounds) == [name for name in METRICS if name in wanted]
    for name, (low, high) in bounds.items():
        value = means[name]
        assert value is not None
        assert low < value < high
    assert bounds == intervals(wanted, values, subjects, seed=0)
    low, high = bounds["log_perplexity"]
    assert bounds["perplexity"] == pytest.approx((math.exp(low), math.exp(high)), rel=1e-3)


def test_a_score_of_zero_has_a_finite_interval() -> None:
    wanted = frozenset({"efficacy", "generalization", "specificity", "score"})
    rows: list[dict[str, float | None]] = [
        {"efficacy": 0.0, "generalization": 0.0, "specificity": 1.0} for _ in range(5)
    ]
    assert intervals(wanted, Values(rows), list("abcde"), seed=0)["score"] == (0.0, 0.0)


def test_cases_of_one_subject_only_have_no_interval() -> None:
    rows: list[dict[str, float | None]] = [{"efficacy": float(n % 2)} for n in range(6)]
    assert intervals(frozenset({"efficacy"}), Values(rows), ["one"] * 6, seed=0) == {}
    assert "efficacy" in intervals(frozenset({"efficacy"}), Values(rows), [None] * 6, seed=0)
