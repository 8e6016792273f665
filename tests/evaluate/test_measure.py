"""From answers to figures."""

import math
from collections.abc import Mapping

import pytest

from retcon.evaluate.answers import Answers, Ids, Pair
from retcon.evaluate.measure import Unedited, Values, figures, intervals, measure
from retcon.evaluate.plan import OF_TEXT, CaseQuestions, Plan, Question
from retcon.forward import Scored
from retcon.lm import LM
from retcon.metrics import METRICS
from retcon.testing import tiny_model, tiny_tokenizer
from retcon.tokens import target_ids

ALL = frozenset(METRICS)
FREE = frozenset(name for name in METRICS if name.endswith("_gen"))
NEW, OLD, TRUE, SAID = (7,), (8, 9), (5,), (3, 4)


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


class Told(Answers):
    """Answers that the test makes up."""

    def __init__(self, lm: LM, scores: dict[Pair, Scored], written: dict[Ids, Ids] | None = None) -> None:
        super().__init__(lm)
        self.scores, self.written = scores, written or {}
        self.asked: dict[Ids, int] = {}

    def free(self, most: Mapping[Ids, int]) -> dict[Ids, Ids]:
        self.asked |= most
        return {prompt: self.written[prompt] for prompt in most}

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
    drift: dict[Ids, float] = {(8,): 0.5, (9,): 0.25, (10,): 0.0}
    base = Unedited({(n,): SAID for n in (8, 9, 10)}, drift=drift, windows=[[-1.5, -0.5]])
    values = measure(lm, plan, Told(lm, scores), base)
    found = figures(ALL, values)
    assert {found.pop(name) for name in FREE} == {None}
    assert found == {
        "efficacy": 1.0,
        "efficacy_prob": 1.0,
        "efficacy_prefixed": 0.75,
        "generalization": 0.5,
        "generalization_prob": 0.5,
        "specificity": pytest.approx(1 / 3),
        "specificity_prob": pytest.approx(2 / 3),
        "neighbourhood_kl": 0.25,
        "score": pytest.approx(3 / (1 + 2 + 3)),
        "fluency": None,
        "perplexity": pytest.approx(math.exp(2)),
        "log_perplexity": 2.0,
        "log_perplexity_change": 1.0,
    }
    assert [[asked.text for asked in row] for row in values.missed] == [["prompt 7"]]
    assert [[asked.text for asked in row] for row in values.changed] == [["prompt 9", "prompt 10"]]


def test_the_unedited_model_agrees_with_itself(lm: LM) -> None:
    plan = Plan(frozenset({"specificity"}), (case(question(1), neighbours=(question(2, TRUE),)),), ())
    assert measure(lm, plan, Told(lm, {}), Unedited(), edited=False).cases == [{"specificity": 1.0}]
    plan = Plan(frozenset({"neighbourhood_kl"}), plan.cases, ())
    assert measure(lm, plan, Told(lm, {}), Unedited(), edited=False).cases == [{"neighbourhood_kl": 0.0}]


def test_what_the_model_writes_must_begin_with_an_accepted_answer(lm: LM) -> None:
    def open_question(name: int, *accepted: str, kind: str | None = None) -> Question:
        return Question(f"prompt {name}", (name,), (), (), accepted, 10, kind)

    one = CaseQuestions(
        open_question(1, "Rome", "Roma"),
        (),
        (open_question(2, "Rome", "Roma"), open_question(3, "Rome", "Roma")),
        (open_question(6, "London"), open_question(7, "Leeds"), open_question(8, "York")),
        None,
        (open_question(4, "Italy", kind="two-hop"), open_question(5, "Tiber", kind="alias")),
    )
    texts = {1: "ROMA, a city", 2: "not Rome", 3: "the Rome.", 4: "Italian", 5: "Tiber", 6: "London", 7: "Hull"}
    written: dict[Ids, Ids] = {(n,): tuple(target_ids(lm, "It is", text)) for n, text in texts.items()}
    free = Told(lm, {}, written)
    base = Unedited(said={(6,): "London", (7,): "Leeds", (8,): "Hull"})
    values = measure(lm, Plan(FREE, (one,), ()), free, base)
    assert values.cases == [
        {
            "efficacy_gen": 1.0,
            "generalization_gen": 0.5,
            "portability_gen": 0.5,
            "two_hop_gen": 0.0,
            "specificity_gen": 0.5,  # York was not known before
        }
    ]
    assert free.asked == {(n,): 10 for n in range(1, 8)}
    assert values.said == ["ROMA, a city"]
    assert [(found.text, found.right) for found in values.portability[0]] == [("Italian", 0.0), ("Tiber", 1.0)]
    before = measure(lm, Plan(FREE, (one,), ()), Told(lm, {}, written), base, edited=False)
    assert before.cases[0]["specificity_gen"] == 1.0


def test_passages_have_a_value_a_length(lm: LM) -> None:
    behind = ((0, (question(1),)), (50, (question(2), question(3))))
    one = CaseQuestions(question(1), (), (), (), None, passages=behind)
    scores: dict[Pair, Scored] = {((1,), NEW): hit(-1.0), ((2,), NEW): hit(-1.0), ((3,), NEW): miss(-1.0)}
    values = measure(lm, Plan(frozenset(), (one,), ()), Told(lm, scores), Unedited())
    assert values.passages == [{0: 1.0, 50: 0.5}]


def test_missing_content_gives_none_never_zero(lm: LM) -> None:
    plan = Plan(ALL, (case(question(1)),), ())
    values = measure(lm, plan, Told(lm, {((1,), NEW): miss(-1.0)}), Unedited())
    found = figures(ALL, values)
    assert found.pop("efficacy") == 0.0
    assert set(found.values()) == {None}


def test_cases_weigh_the_same_however_many_prompts_they_have() -> None:
    values = Values([{"specificity": 1.0}, {"specificity": 0.5}, {"specificity": None}])
    assert figures(frozenset({"specificity"}), values) == {"specificity": 0.75}


def test_intervals_hold_their_figures_and_the_score_has_one() -> None:
    wanted = frozenset({"efficacy", "generalization", "specificity", "score"}) | OF_TEXT
    rows: list[dict[str, float | None]] = [
        {"efficacy": float(n % 5 > 0), "generalization": float(n % 3 > 0), "specificity": n % 7 / 6} for n in range(60)
    ]
    windows = [[-1.0 - n / 10] * 20 for n in range(8)] + [[-9.0]]
    values = Values(rows, windows, [[one + 0.5 + n / 100 for one in window] for n, window in enumerate(windows)])
    subjects = [None if n % 10 == 0 else f"subject {n}" for n in range(60)]
    means, bounds = figures(wanted, values), intervals(wanted, values, subjects, seed=0)
    assert list(bounds) == [name for name in METRICS if name in wanted]
    for name, (low, high) in bounds.items():
        value = means[name]
        assert value is not None
        assert low < value < high
    assert bounds == intervals(wanted, values, subjects, seed=0)
    low, high = bounds["log_perplexity"]
    assert bounds["log_perplexity_change"][1] - bounds["log_perplexity_change"][0] < 0.1 * (high - low)
    assert bounds["perplexity"] == pytest.approx((math.exp(low), math.exp(high)), rel=1e-3)


def test_a_score_of_zero_has_a_finite_interval() -> None:
    wanted = frozenset({"efficacy", "generalization", "specificity", "score"})
    rows: list[dict[str, float | None]] = [
        {"efficacy": 0.0, "generalization": 0.0, "specificity": 1.0} for _ in range(5)
    ]
    assert intervals(wanted, Values(rows), list("abcde"), seed=0)["score"] == (0.0, 0.0)


def test_a_free_running_score_leaves_out_what_no_case_has() -> None:
    wanted = frozenset({"efficacy_gen", "generalization_gen", "specificity_gen", "score_gen"})
    rows: list[dict[str, float | None]] = [
        {"efficacy_gen": float(n % 5 > 0), "generalization_gen": None, "specificity_gen": float(n % 2)}
        for n in range(60)
    ]
    values, subjects = Values(rows), [f"subject {n}" for n in range(60)]
    assert figures(wanted, values)["score_gen"] == pytest.approx(2 / (1 / 0.8 + 1 / 0.5))
    low, high = intervals(wanted, values, subjects, seed=0)["score_gen"]
    assert low < 2 / (1 / 0.8 + 1 / 0.5) < high
    whole = [{**row, "generalization_gen": 0.25} for row in rows]
    assert figures(wanted, Values(whole))["score_gen"] == pytest.approx(3 / (1 / 0.8 + 4 + 1 / 0.5))
    nothing = Values([{**row, "efficacy_gen": None} for row in rows])
    assert figures(wanted, nothing)["score_gen"] is None
    assert "score_gen" not in intervals(wanted, nothing, subjects, seed=0)


def test_cases_of_one_subject_only_have_no_interval() -> None:
    rows: list[dict[str, float | None]] = [{"efficacy": float(n % 2)} for n in range(6)]
    assert intervals(frozenset({"efficacy"}), Values(rows), ["one"] * 6, seed=0) == {}
    assert "efficacy" in intervals(frozenset({"efficacy"}), Values(rows), [None] * 6, seed=0)
