"""Figures told apart."""

from dataclasses import replace

from retcon.evaluate.breakdown import by_facts_of_the_subject, by_kind, by_length, by_step
from retcon.evaluate.measure import Values, Written
from retcon.evaluate.plan import Question
from retcon.patch import Patch
from retcon.patch.history import Step
from retcon.requests import Case, Edit, to_dict


def case(subject: str | None, n: int = 0) -> Case:
    if subject is None:
        return Case(Edit(f"Fact {n} is", target="old"))
    return Case(Edit(f"Fact {n} of {{}} is", subject, "old"))


def test_each_length_has_its_figure_and_interval() -> None:
    values = Values([{}] * 3, passages=[{0: 1.0, 50: 0.5}, {0: 1.0, 50: 0.0}, {0: 0.0, 50: 1.0}])
    before = Values([{}] * 3, passages=[{0: 0.0, 50: 0.0}] * 3)
    found = by_length(values, before, {0: [], 50: ["a", "b"]}, ["x", "y", "z"], 0)
    assert list(found) == ["0", "50"]
    assert (found["50"]["texts"], found["50"]["efficacy_prefixed"], found["50"]["before"]) == (2, 0.5, 0.0)
    low, high = found["50"]["interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert found["0"]["efficacy_prefixed"] == 2 / 3
    assert by_length(values, None, {}, ["x", "y", "z"], 0) == {}


def test_figures_by_how_many_facts_a_subject_has() -> None:
    cases = [case("Rome", 0), case("Rome", 1), case("Lima", 0), case("Cairo", 0), case("Cairo", 1), case(None, 9)]
    rows: list[dict[str, float | None]] = [
        {"efficacy": hit, "generalization": None} for hit in (1.0, 0.0, 1.0, 1.0, 1.0, 0.0)
    ]
    found = by_facts_of_the_subject(cases, cases, rows, 0)
    low, high = found["2"].pop("intervals")["efficacy"]
    assert low == 0.5 < 0.75 < high == 1
    assert found["1"].pop("intervals") == {}  # of one subject nothing can be told
    assert found == {
        "1": {"subjects": 1, "facts": 1, "efficacy": 1.0, "generalization": None, "all_efficacy": 1.0},
        "2": {"subjects": 2, "facts": 4, "efficacy": 0.75, "generalization": None, "all_efficacy": 0.5},
    }


def test_a_sample_counts_the_facts_of_all_and_tells_of_whole_subjects_only() -> None:
    given = [case("Rome", 0), case("Rome", 1), case("Lima", 0), case("Lima", 1)]
    found = by_facts_of_the_subject([given[0], *given[2:]], given, [{"efficacy": 1.0}] * 3, 0)
    assert list(found) == ["2"]
    assert (found["2"]["subjects"], found["2"]["facts"], found["2"]["all_efficacy"]) == (2, 3, 1.0)
    alone = by_facts_of_the_subject(given[:1], given, [{"efficacy": 1.0}], 0)
    assert alone["2"]["all_efficacy"] is None


def test_one_fact_a_subject_needs_no_table() -> None:
    cases = [case("Rome"), case("Lima"), case(None)]
    assert by_facts_of_the_subject(cases, cases, [{"efficacy": 1.0}] * 3, 0) == {}


def test_questions_are_told_apart_by_kind() -> None:
    def probe(kind: str | None, right: float) -> Written:
        return Written(Question("p", (1,), (), (), ("Rome",), 10, kind), "Rome", right)

    values = Values([{}, {}], portability=[[probe("alias", 1.0), probe(None, 1.0)], [probe("alias", 0.0)]])
    before = Values([{}, {}], portability=[[probe("alias", 0.0), probe(None, 1.0)], [probe("alias", 0.0)]])
    found = by_kind(values, before, ["Rome", "Lima"], 0)
    assert found == {
        "alias": {"questions": 2, "portability_gen": 0.5, "interval": [0.0, 1.0], "before": 0.0},
        "unnamed": {"questions": 1, "portability_gen": 1.0, "interval": None, "before": 1.0},
    }
    assert by_kind(values, None, ["Rome", "Lima"], 0)["alias"]["before"] is None
    assert by_kind(values, None, ["Rome", "Rome"], 0)["alias"]["interval"] is None  # one subject
    assert by_kind(Values([{}]), None, [None], 0) == {}


def test_the_final_model_is_told_of_by_the_step_that_made_each_edit(patch: Patch) -> None:
    cases = [case("Rome", 0), case("Lima", 0), case("Cairo", 0), case("Oslo", 0), case("Bern", 0)]
    records = [to_dict(one.edit) for one in cases]
    steps = (
        Step(method="memit", edits=records[:3]),
        Step(method="hand"),
        Step(method="ece", edits=[*records[2:4], records[2] | {"target_new": "another"}]),
    )
    rows: list[dict[str, float | None]] = [{"efficacy": hit} for hit in (1.0, 0.0, 1.0, 1.0, 0.0)]
    found = by_step(cases, rows, replace(patch, history=steps), 0)
    assert found[0].pop("intervals") == {"efficacy": [0.0, 1.0]}
    assert found[1].pop("intervals") == {"efficacy": [1.0, 1.0]}
    assert found == [
        {"step": 1, "method": "memit", "edits": 3, "edits_so_far": 3, "judged": 2, "efficacy": 0.5},
        {"step": 3, "method": "ece", "edits": 3, "edits_so_far": 6, "judged": 2, "efficacy": 1.0},
    ]
    assert by_step(cases[:2], rows[:2], replace(patch, history=steps), 0) == []  # of one step
    assert by_step(cases, rows, None, 0) == []
