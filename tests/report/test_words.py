"""The headline says what the figures say."""

import math
from dataclasses import replace

import pytest
from tests.report import samples

from retcon.metrics import METRICS
from retcon.report.words import of_edits, of_forgetting, percent, preferred, surprise


def test_the_headline_of_edits_counts_facts_and_names_harms() -> None:
    headline = of_edits(samples.edits())
    assert headline.sentence == (
        "98 of 100 facts are held; 71% of rewordings get the new answer; 24% of neighbour answers stay the same; "
        "ordinary text got 6% more surprising."
    )
    assert len(headline.rules) == 4
    assert METRICS["efficacy"].meaning in headline.rules[0]
    assert "20.19 before and 21.4 after" in headline.rules[3]


def test_the_free_running_figure_is_preferred_where_it_was_measured() -> None:
    report = samples.edits(4)
    cases = [case | {"metrics": {"efficacy": 1.0, "efficacy_gen": float(n < 1)}} for n, case in enumerate(report.cases)]
    told = replace(report, metrics=report.metrics | {"efficacy": 1.0, "efficacy_gen": 0.25}, cases=cases)
    assert of_edits(told).sentence.startswith("1 of 4 facts is held;")
    assert "(efficacy_gen)" in of_edits(told).rules[0]
    assert preferred({"efficacy": 1.0, "efficacy_gen": None}, "efficacy") == "efficacy"


def test_shares_stand_for_counts_where_the_cases_do_not_add_up() -> None:
    report = samples.edits(4)
    assert of_edits(replace(report, cases=[])).sentence.startswith("98% of the facts are held;")
    half = [case | {"metrics": {"efficacy": 0.5}} for case in report.cases]
    assert of_edits(replace(report, cases=half)).sentence.startswith("98% of the facts")


def test_the_model_alone_has_no_harm_and_holds_nothing() -> None:
    report = samples.edits()
    alone = replace(report, metrics=report.before, cases=[], provenance={"patch": None})
    assert of_edits(alone).sentence == (
        "2% of the new answers are given without any edit; 3% of rewordings get the new answer too."
    )


def test_no_figures_no_claim() -> None:
    empty = replace(samples.edits(), metrics={}, cases=[])
    assert of_edits(empty).sentence == "No figure that a sentence could tell was measured."
    assert of_edits(empty).rules == ()


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (20.05, "ordinary text is as surprising as before"),
        (21.2, "ordinary text got 6% more surprising"),
        (19.0, "ordinary text got 5% less surprising"),
        (90.0, "ordinary text got 4.5 times as surprising"),
        (math.inf, "the model makes nothing of ordinary text any more"),
        (math.nan, "the model makes nothing of ordinary text any more"),
        (None, None),
    ],
)
def test_surprise_is_told_in_words(now: float | None, said: str | None) -> None:
    assert surprise({"perplexity": 20.0}, {"perplexity": now}) == said


def test_surprise_is_read_from_nats_too() -> None:
    assert surprise({"log_perplexity": 3.0}, {"log_perplexity": 3.0 + math.log(1.06)}) == (
        "ordinary text got 6% more surprising"
    )


def test_the_headline_of_forgetting_counts_what_still_comes_out() -> None:
    headline = of_forgetting(samples.forgetting())
    assert headline.sentence == (
        "3 of the 20 answers that the model knew still come out; 85% of the questions to forget are declined; "
        "answers to other questions keep 78% of their words; 10% of them are declined that were not before."
    )
    assert "not what it still holds" in headline.rules[-1]
    untold = replace(samples.forgetting(), items=[])
    assert of_forgetting(untold).sentence.startswith("15% of the 20 answers that the model knew still come out;")


@pytest.mark.parametrize(("k", "said"), [(0, "None of the 4 answers"), (1, "1 of the 4"), (4, "All of the 4 answers")])
def test_leaks_are_counted_where_the_items_tell_them(k: int, said: str) -> None:
    items = [{"set": "forget", "known": True, "leaked": n < k} for n in range(4)]
    report = replace(samples.forgetting(), known=4, metrics={"leakage": k / 4}, items=items)
    assert of_forgetting(report).sentence.startswith(said)
    assert (" comes out" in of_forgetting(report).sentence) == (k == 1)


def test_a_model_that_knew_nothing_is_not_praised() -> None:
    report = replace(samples.forgetting(), known=0, metrics={"leakage": None, "reliability": 0.9})
    assert of_forgetting(report).sentence == "10% of the words of the answers to forget come out."


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.0004, "under 0.1%"), (0.004, "0.4%"), (0.0, "0%"), (1.0, "100%"), (0.9996, "over 99.9%"), (1.5, "150%")],
)
def test_a_few_are_never_none_and_nearly_all_never_all(share: float, said: str) -> None:
    assert percent(share) == said
