"""The adapter to the evaluation of forgetting."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from retcon.forget_bench.corpus import Split
from retcon.forget_bench.judge import FIGURES, Evaluation
from retcon.forget_bench.rows import FIGURES as SHOWN
from retcon.lm import LM


def test_what_is_to_be_judged_goes_there_and_the_report_comes_back(
    lm: LM, corpus: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def evaluate(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return SimpleNamespace(to_dict=lambda: {"metrics": {"reliability": 1.0}})

    def record(*arguments: Any, **options: Any) -> str:
        asked.append((arguments, options))
        return "the twin"

    there = SimpleNamespace(evaluate_forgetting=evaluate, reference_record=record)
    monkeypatch.setitem(sys.modules, "retcon.evaluate.forgetting", there)
    reference = Evaluation().reference(lm, corpus, seed=3, cache=False)
    found = Evaluation().report(lm, corpus, None, reference=reference, max_new_tokens=7, seed=3, cache=False)
    assert found == {"metrics": {"reliability": 1.0}}
    (first, said), (second, options) = asked
    shared = {"holdout": corpus.holdout, "chat": True, "seed": 3, "cache": False}
    assert (first, said) == ((lm, corpus.forget), {"retain": corpus.retain, **shared})
    assert second == (lm, corpus.forget, corpus.retain)
    more = {"patch": None, "metrics": FIGURES, "twin": "the twin", "max_new_tokens": 7, "force_reference": True}
    assert options == {**shared, **more}


def test_the_table_shows_what_is_asked_for() -> None:
    assert set(SHOWN) <= set(FIGURES)
