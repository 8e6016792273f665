"""Tasks to outcomes to figures."""

import pytest

from retcon.errors import RetconError
from retcon.evaluate.ability import TASKS, Asking, Outcome, details, figures, harness, intervals
from retcon.evaluate.answers import Answers
from retcon.lm import LM
from retcon.testing import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


def test_our_tasks_need_nothing_else(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "run", lambda *_: pytest.fail("the harness was asked"))
    found = Asking(["word_order", "common_sense", "word_order"]).of(lm, Answers(lm))
    assert list(found) == ["word_order", "common_sense"]
    assert [len(outcome.hits) for outcome in found.values()] == [80, 101]
    assert {outcome.scored_by for outcome in found.values()} == {"retcon"}
    assert Asking([]).of(lm, Answers(lm)) == {}


def test_other_tasks_are_kindly_refused_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda _: None)
    with pytest.raises(
        RetconError, match=r"'hellaswag' needs lm-evaluation-harness; .*retcon-lm\[lm-eval\].*arithmetic"
    ):
        Asking(["arithmetic", "hellaswag"])
    with pytest.raises(RetconError, match="'arithmetic' needs"):
        Asking(["arithmetic"], harness=True)


def test_tasks_go_to_the_one_who_knows_them_in_the_order_given(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[object] = []
    monkeypatch.setattr(harness, "check", lambda names, files: checked.append((list(names), files)))
    scored = {"mine": harness.Scored([1.0, 0.0], "h", "lm-eval 0", "acc", "strict-match")}
    monkeypatch.setattr(harness, "run", lambda _lm, names, _files: {name: scored[name] for name in names})
    found = Asking(["mine", "common_sense"]).of(lm, Answers(lm))
    assert (list(found), checked) == (["mine", "common_sense"], [(["mine"], None)])
    assert (found["mine"].scored_by, found["mine"].hits) == ("lm-eval 0", [1.0, 0.0])
    told = details(found, {}, 0)
    assert (told["mine"]["filter"], told["common_sense"]["filter"]) == ("strict-match", None)
    assert told["mine"]["rule"] == (
        "By the rule of the task in lm-eval 0: acc, of the answer that its filter strict-match finds."
    )
    assert "highest summed log probability" in told["common_sense"]["rule"]


def test_figures_intervals_and_the_change_are_over_items() -> None:
    after = {"word_order": Outcome([1.0, 0.0, 0.0, 0.0] * 10, "h", "retcon")}
    before = {"word_order": Outcome([1.0, 1.0, 1.0, 0.0] * 10, "h", "retcon")}
    assert figures(after) == {"ability_word_order": 0.25}
    low, high = intervals(after, 0)["ability_word_order"]
    assert 0 < low < 0.25 < high < 0.5
    told = details(after, before, 0)["word_order"]
    assert (told["items"], told["hits_before"]) == (40, before["word_order"].hits)
    assert told["change"]["difference"] == -0.5
    assert told["change"]["p"] < 0.01
    assert "change" not in details(after, {}, 0)["word_order"]


def test_every_task_has_a_sentence() -> None:
    assert set(TASKS) >= {"arithmetic", "word_order", "common_sense"}
    assert all(sentence.endswith("items.") for sentence in TASKS.values())
