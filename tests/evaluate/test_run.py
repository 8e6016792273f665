"""The whole evaluation on a tiny model, against a slow reading of the definitions."""

import math
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.conftest import PREFIXES, TEXT, Slow, average

from retcon import forward, tokens
from retcon.bench import records
from retcon.errors import RetconError
from retcon.evaluate import Report, answers, evaluate, generating
from retcon.evaluate import run as running
from retcon.evaluate.measure import Values, measure
from retcon.evaluate.plan import OF_TEXT
from retcon.lm import LM
from retcon.metrics import METRICS
from retcon.patch import Patch, active
from retcon.requests import Case
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

QUICK = [name for name in METRICS if name != "fluency"]  # without a hundred tokens a case
ABSENT = {"portability_gen", "two_hop_gen", "specificity_gen"}  # no such questions, and no neighbour is known


def test_figures_are_those_of_the_definitions(lm: LM, cases: list[Case], patch: Patch) -> None:
    slow = Slow(lm)
    said = {probe.prompt: slow.says(probe.prompt, 5) for case in cases for probe in case.neighbours}
    report = evaluate(lm, cases, patch=patch, metrics=QUICK, prefixes=PREFIXES, text=TEXT)

    def defined() -> dict[str, float]:
        def prefers_new(prompt: str, case: Case) -> float:
            new, old = case.edit.target, case.edit.old
            assert old is not None
            return float(slow.mean_logprob(prompt, new) > slow.mean_logprob(prompt, old))

        def agrees(prompt: str) -> float:
            return float(slow.says(prompt, 5) == said[prompt])

        return {
            "efficacy": average(slow.gives(c.edit.text, c.edit.target) for c in cases),
            "efficacy_prob": average(prefers_new(c.edit.text, c) for c in cases),
            "efficacy_prefixed": average(
                slow.gives(f"{prefix}. {c.edit.text}", c.edit.target) for c in cases for prefix in PREFIXES
            ),
            "generalization": average(slow.gives(text, c.edit.target) for c in cases for text in c.paraphrases),
            "generalization_prob": average(prefers_new(text, c) for c in cases for text in c.paraphrases),
            "specificity": average(agrees(probe.prompt) for c in cases for probe in c.neighbours),
        }

    expected = defined()
    assert {name: report.before[name] for name in expected} == pytest.approx(expected)
    with patch.on(lm.model):
        expected = defined()
    assert {name: report.metrics[name] for name in expected} == pytest.approx(expected)
    assert 0 < expected["specificity"] < 1


def test_perplexity_is_token_weighted_over_windows(lm: LM, cases: list[Case]) -> None:
    report = evaluate(lm, cases[:1], metrics=["perplexity", "log_perplexity"], text=TEXT)
    ids, slow, nats = tokens.encode(lm, TEXT), Slow(lm), []
    for start in range(0, len(ids), 256):  # the tiny model has 256 positions
        window = ids[start : start + 256]
        rows = slow.logprobs(window)[:-1]
        nats += (-rows[range(len(window) - 1), window[1:]]).tolist()
    assert len(ids) > 256
    assert report.metrics["log_perplexity"] == pytest.approx(sum(nats) / len(nats), abs=1e-4)
    assert report.provenance["text"]["scored_tokens"] == len(nats)


def test_without_a_patch_both_columns_are_the_model(lm: LM, cases: list[Case]) -> None:
    report = evaluate(lm, cases, metrics=QUICK, text=TEXT)
    assert report.metrics == report.before
    assert report.intervals == report.before_intervals
    assert (report.metrics["specificity"], report.edited) == (1.0, False)
    assert all(case["answers"]["before"] is not None for case in report.cases)


def test_the_unedited_model_is_not_asked_twice(
    lm: LM, cases: list[Case], patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(lm, cases, patch=patch, text=TEXT)
    for name in ("score", "greedy", "sample"):
        monkeypatch.setattr(forward, name, _only_while(patch, lm, getattr(forward, name)))
    monkeypatch.setattr(answers, "written", _only_while(patch, lm, generating.written))
    again = evaluate(lm, cases, patch=patch, text=TEXT)
    assert (again.metrics, again.before, again.cases) == (first.metrics, first.before, first.cases)
    assert again.provenance["prefixes"] == first.provenance["prefixes"]
    with pytest.raises(AssertionError, match="unedited"):
        evaluate(lm, cases, patch=patch, text=TEXT, cache=False)


def _only_while(patch: Patch, lm: LM, function: Any) -> Any:
    def asked(*args: Any, **options: Any) -> Any:
        assert patch in active(lm.model), "the unedited model was asked again"
        return function(*args, **options)

    return asked


def test_each_model_is_scored_in_one_call_and_one_for_the_text(
    lm: LM, cases: list[Case], patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = forward.score

    def counted(lm: LM, items: Any, **options: Any) -> Any:
        calls.append(len(items))
        return real(lm, items, **options)

    monkeypatch.setattr(forward, "score", counted)
    evaluate(lm, cases, patch=patch, metrics=QUICK, text=TEXT, prefixes=PREFIXES)
    distinct = {c.edit.text for c in cases} | {t for c in cases for t in c.paraphrases}
    distinct |= {p.prompt for c in cases for p in c.neighbours}
    distinct |= {f"{prefix}. {c.edit.text}" for c in cases for prefix in PREFIXES}
    assert [n for n in calls if n > 5] == [len(distinct)] * 2
    assert len(calls) == 4


def test_without_comparison_only_what_specificity_needs_is_asked_before(
    lm: LM, cases: list[Case], patch: Patch
) -> None:
    whole = evaluate(lm, cases, patch=patch, metrics=QUICK, text=TEXT, prefixes=PREFIXES)
    report = evaluate(lm, cases, patch=patch, metrics=QUICK, text=TEXT, prefixes=PREFIXES, compare=False)
    assert (report.before, report.before_intervals) == ({}, {})
    assert report.metrics == whole.metrics
    assert {case["before"] for case in report.cases} == {None}


def test_only_the_asked_figures_are_given(lm: LM, cases: list[Case], patch: Patch) -> None:
    report = evaluate(lm, cases, patch=patch, metrics=["specificity_prob", "score"])
    assert list(report.metrics) == list(report.before) == ["specificity_prob", "score"]
    assert report.provenance["text"] is None
    with pytest.raises(RetconError, match="no metric"):
        evaluate(lm, cases, metrics=["magic"])


def test_missing_content_gives_none(lm: LM, cases: list[Case], patch: Patch) -> None:
    bare = [Case(edit) for edit in tiny_edits(2)]
    report = evaluate(lm, bare, patch=patch, prefixes=[], text=TEXT)
    held = ("efficacy_gen", "efficacy", "efficacy_prob", "fluency", *(name for name in METRICS if name in OF_TEXT))
    assert [name for name, value in report.metrics.items() if value is not None] == list(held)
    assert report.details == {}


def test_a_sample_is_seeded_and_keeps_the_order(lm: LM, cases: list[Case]) -> None:
    def ids(seed: int) -> list[str]:
        report = evaluate(lm, cases, sample=4, seed=seed, metrics=["efficacy"])
        assert report.n == 4
        assert report.provenance["cases"] == {"scored": 4, "given": 8, "sampled": True}
        return [case["id"] for case in report.cases]

    assert ids(0) == ids(0) == sorted(ids(0))
    assert len({tuple(ids(seed)) for seed in range(4)}) > 1
    assert evaluate(lm, cases, sample=99, metrics=["efficacy"]).n == 8
    state = random.getstate()
    ids(0)
    assert random.getstate() == state


def test_every_edited_figure_of_many_subjects_has_an_interval(lm: LM, cases: list[Case], patch: Patch) -> None:
    report = evaluate(lm, cases, patch=patch, text=TEXT, prefixes=PREFIXES)
    assert set(report.intervals) == set(METRICS) - ABSENT
    for name, (low, high) in report.intervals.items():
        value = report.metrics[name]
        assert value is not None
        assert low - 1e-9 <= value <= high + 1e-9


def test_changed_neighbours_are_listed_with_both_answers(lm: LM, cases: list[Case], patch: Patch) -> None:
    report = evaluate(lm, cases, patch=patch, metrics=["efficacy", "specificity"])
    changed = [item for case in report.cases for item in case["changed"]]
    share = 1 - len(changed) / sum(len(case.neighbours) for case in cases)
    assert report.metrics["specificity"] == pytest.approx(share)
    assert changed
    slow = Slow(lm)
    for item in changed:
        said = tokens.decode(lm, slow.says(item["prompt"], 12))
        assert item["before"] == " ".join(said.split()) != item["after"]


def test_what_follows_an_end_of_text_is_not_compared(
    lm: LM, cases: list[Case], patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = lm.tokenizer.eos_token_id
    real = forward.score
    asked: list[Any] = []

    def noted(lm: LM, items: Any, **options: Any) -> Any:
        asked.extend(items)
        return real(lm, items, **options)

    monkeypatch.setattr(forward, "greedy", lambda _lm, prompts, **_: [[9, end, 8, 8, 8] for _ in prompts])
    monkeypatch.setattr(forward, "score", noted)
    evaluate(lm, cases, patch=patch, metrics=["specificity"])
    assert {tuple(rest) for _, rests in asked for rest in rests} == {(9, end)}


def test_patches_that_are_on_already_belong_to_the_unedited_model(lm: LM, cases: list[Case], patch: Patch) -> None:
    bare = evaluate(lm, cases, metrics=["log_perplexity"], text=TEXT)
    with patch.on(lm.model):
        inside = evaluate(lm, cases, metrics=["log_perplexity"], text=TEXT)
    after = evaluate(lm, cases, metrics=["log_perplexity", "log_perplexity_change"], text=TEXT, patch=patch)
    change = after.metrics.pop("log_perplexity_change")
    assert bare.metrics != inside.metrics == after.metrics
    assert after.before == bare.metrics | {"log_perplexity_change": 0.0}
    then, now = bare.metrics["log_perplexity"], inside.metrics["log_perplexity"]
    assert change is not None
    assert then is not None
    assert now is not None
    assert change == pytest.approx(now - then, abs=1e-9)
    low, high = after.intervals["log_perplexity_change"]
    assert low <= change <= high


def test_a_patch_that_was_made_through_the_chat_template_is_not_asked_without_it_unsaid(
    lm: LM, cases: list[Case], patch: Patch
) -> None:
    asked: dict[str, Any] = {"metrics": ["efficacy"], "compare": False}
    assert not evaluate(lm, cases[:1], patch=patch, **asked).warnings
    history = tuple(replace(step, chat=True) for step in patch.history)
    (said,) = evaluate(lm, cases[:1], patch=replace(patch, history=history), **asked).warnings
    assert said.startswith("the patch was made with the chat template and is asked without it here; give --chat")


def test_no_case_and_an_empty_sample_are_refused(lm: LM, cases: list[Case]) -> None:
    with pytest.raises(RetconError, match="no cases"):
        evaluate(lm, [])
    with pytest.raises(RetconError, match="at least 1"):
        evaluate(lm, cases, sample=0)


def test_provenance_tells_how_to_repeat_it(lm: LM, cases: list[Case], patch: Patch) -> None:
    report = evaluate(lm, cases, patch=patch, seed=3, text=TEXT, provenance={"data_sha256": "ab", "command": "retcon"})
    found = report.provenance
    assert found["patch"] == {"id": patch.id, "parent": None, "method": "random", "edits": 1}
    assert (found["seed"], found["data_sha256"], found["command"]) == (3, "ab", "retcon")
    assert found["model"]["fingerprint"] == lm.fingerprint()
    assert len(found["prefixes"]["texts"]) == 10
    assert found["fluency"] == {"cases": 8, "tokens": 100, "decoding": "greedy"}
    assert found["speed"]["tokens"] > 0
    assert Report.from_json(report.to_json()).metrics == report.metrics


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "falcon", "bloom"])
def test_other_families_and_tokenizers_are_measured_too(family: str, cases: list[Case]) -> None:
    other = LM.wrap(tiny_model(family), tiny_tokenizer("sentencepiece"))
    report = evaluate(other, cases[:3], prefixes=PREFIXES, text=TEXT)
    assert {name for name, value in report.metrics.items() if value is None} == ABSENT
    assert report.provenance["model"]["bos"] == ["<s>"]


def test_answers_are_shown_of_what_fails_by_the_figure_of_the_headline(
    lm: LM, cases: list[Case], patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SHOWN", 3)

    def judged(*args: Any, **options: Any) -> Values:
        found = measure(*args, **options)
        for n, values in enumerate(found.cases):
            values |= {"efficacy_gen": float(n not in (5, 6)), "efficacy": float(n not in (0, 6))}
        return found

    monkeypatch.setattr(running, "measure", judged)
    report = evaluate(lm, cases, patch=patch, metrics=["efficacy_gen", "efficacy"])
    assert [n for n, case in enumerate(report.cases) if case["answers"]["after"] is not None] == [0, 5, 6]


def test_a_ruined_model_has_infinite_figures_that_are_told_and_no_interval(
    lm: LM, cases: list[Case], patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(*args: Any, edited: bool = True, **options: Any) -> Values:
        found = measure(*args, edited=edited, **options)
        if edited:
            found.cases[3]["neighbourhood_kl"] = math.nan
            found.windows[0][0] = -math.inf
        return found

    monkeypatch.setattr(running, "measure", judged)
    report = evaluate(lm, cases, patch=patch, metrics=["efficacy", "neighbourhood_kl", "perplexity"], text=TEXT)
    assert set(report.intervals) == {"efficacy"}
    assert report.warnings == [
        "neighbourhood_kl is not a number, for 1 of 8 cases are no finite numbers; it has no interval",
        "perplexity is infinite; it has no interval",
    ]
    told = report.to_dict()
    assert told["not_finite"] == {"neighbourhood_kl": "nan", "perplexity": "inf"}
    assert told["cases"][3]["not_finite"] == {"neighbourhood_kl": "nan"}
    path = records.save(told["cases"], Path(os.environ["RETCON_CACHE"]), "cases", {})
    assert records.load(path) == told["cases"]
