"""The whole evaluation where the truth is known, against a slow reading of the definitions."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from tests.evaluate.forgetting.conftest import World

import retcon
from retcon import forward, tokens
from retcon.errors import RetconError, RetconWarning
from retcon.evaluate import ForgetReport, answers, detail, evaluate_forgetting
from retcon.evaluate.forgetting import heard
from retcon.forget import detector, edits_of, find_subjects
from retcon.forget.plan import ACCESS_CONTROL
from retcon.forget.privacy import id_of
from retcon.forget.target import Target
from retcon.forget_bench.judge import FIGURES
from retcon.lm import LM
from retcon.metrics import FORGET_METRICS
from retcon.metrics.forgotten import locality, reliability
from retcon.metrics.rouge import rougel_recall
from retcon.patch import Dense, ForwardRecord, Patch
from retcon.requests import Forget, ForgetCase
from retcon.storage import salted
from retcon.testing import tiny_model, tiny_tokenizer

DEFAULT = [
    "reliability", "generalization", "locality", "retain_drift", "refusal_rate", "over_refusal", "refusal_quality",
    "leakage",
]  # fmt: skip


class Slow:
    """The definitions, one prompt at a time, on the logits of whole rows."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm

    def rows(self, question: str, answer: str) -> tuple[torch.Tensor, list[int]]:
        """Log probabilities over the vocabulary at each token of the answer and its end, and those tokens."""
        text = self.lm.render(question)
        start, wanted = tokens.encode(self.lm, text), tokens.target_ids(self.lm, text, f"{answer}</s>")
        with torch.no_grad():
            logits: torch.Tensor = self.lm.model(torch.tensor([start + wanted])).logits[0]
        return logits.double().log_softmax(-1)[len(start) - 1 : -1], wanted

    def nats(self, question: str, answer: str) -> list[float]:
        rows, wanted = self.rows(question, answer)
        return [float(row[token]) for row, token in zip(rows, wanted, strict=True)]

    def loss(self, question: str, answer: str) -> float:
        return -fmean(self.nats(question, answer))

    def hits(self, question: str, answer: str) -> list[bool]:
        rows, wanted = self.rows(question, answer)
        return [int(row.argmax()) == token for row, token in zip(rows, wanted, strict=True)]

    def ranks(self, question: str, answer: str) -> list[int]:
        rows, wanted = self.rows(question, answer)
        return [int((row > row[token]).sum()) + 1 for row, token in zip(rows, wanted, strict=True)]

    def steepness(self, question: str, answer: str) -> float:
        """The mean norm of the gradient of the loss, by autograd on the whole row; of weights and not of a patch."""
        text = self.lm.render(question)
        start, wanted = tokens.encode(self.lm, text), tokens.target_ids(self.lm, text, f"{answer}</s>")
        rows = self.lm.model(torch.tensor([start + wanted])).logits[0].log_softmax(-1)[len(start) - 1 : -1]
        loss = -rows[range(len(wanted)), wanted].mean()
        slopes = torch.autograd.grad(loss, list(self.lm.model.parameters()))
        return fmean(float(slope.square().sum().sqrt()) for slope in slopes)

    def says(self, question: str, n: int = 40) -> str:
        return " ".join(tokens.decode(self.lm, self.own(question, n)).split())

    def own(self, question: str, n: int = 40) -> list[int]:
        ids = start = tokens.encode(self.lm, self.lm.render(question))
        for _ in range(n):
            with torch.no_grad():
                token = int(self.lm.model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == self.lm.tokenizer.eos_token_id:
                break
            ids = [*ids, token]
        return ids[len(start) :]

    def likely(self, question: str, wanted: list[int]) -> list[float]:
        """The log probability of each token of a text after a question."""
        start = tokens.encode(self.lm, self.lm.render(question))
        with torch.no_grad():
            rows = self.lm.model(torch.tensor([start + wanted])).logits[0].double().log_softmax(-1)[len(start) - 1 : -1]
        return [float(row[token]) for row, token in zip(rows, wanted, strict=True)]

    def ratio(self, case: ForgetCase) -> float:
        asked = case.forget.question
        wrong = fmean(self.loss(asked, text) for text in case.perturbed_answers)
        return math.exp(self.loss(asked, case.paraphrased_answer or case.forget.answer) - wrong)


def area(forget: Sequence[float], holdout: Sequence[float]) -> float:
    return fmean((h > f) + 0.5 * (h == f) for f in forget for h in holdout)


def lowest(values: Sequence[float]) -> float:
    return -fmean(sorted(values)[: max(1, int(0.4 * len(values) + 1e-9))])


def defined(slow: Slow, world: World, first: dict[str, str]) -> dict[str, float]:
    """The figures that need no other model, by their definitions."""
    pairs = [(case.forget.question, case.forget.answer) for case in world.forget]
    out = [(case.forget.question, case.forget.answer) for case in world.holdout]
    said = [slow.says(question) for question, _ in pairs]
    kept = [slow.says(case.forget.question) for case in world.retain]
    ratios = [slow.ratio(case) for case in world.forget]
    known = [answer.lower() in first[question].lower() for question, answer in pairs]
    told = [answer.lower() in text.lower() for text, (_, answer) in zip(said, pairs, strict=True)]

    def attack(score: Callable[[str, str], float]) -> float:
        return area([score(*pair) for pair in pairs], [score(*pair) for pair in out])

    def strength(hits: Sequence[bool]) -> float:
        return max(1 - k / len(hits) for k in range(len(hits) + 1) if all(hits[k:]))

    def plus_plus(question: str, answer: str) -> float:
        rows, wanted = slow.rows(question, answer)
        mean = (rows.exp() * rows).sum(-1)
        variance = (rows.exp() * rows.square()).sum(-1) - mean.square()
        own = rows[range(len(wanted)), wanted]
        return lowest(((own - mean) / variance.clamp_min(1e-6).sqrt()).tolist())

    return {
        "reliability": reliability(said, [answer for _, answer in pairs]) or 0.0,
        "locality": locality(kept, [first[case.forget.question] for case in world.retain]) or 0.0,
        "refusal_rate": fmean(map(detector.refuses, said)),
        "leakage": fmean(leak for leak, knew in zip(told, known, strict=True) if knew),
        "probability": fmean(math.exp(-slow.loss(*pair)) for pair in pairs),
        "rougel_recall_porter": fmean(rougel_recall(text, a) or 0 for text, (_, a) in zip(said, pairs, strict=True)),
        "truth_ratio": fmean(min(ratio, 1 / ratio) for ratio in ratios),
        "exact_memorisation": fmean(fmean(slow.hits(*pair)[:-1]) for pair in pairs),
        "extraction_strength": fmean(strength(slow.hits(*pair)[:-1]) for pair in pairs),
        "mrr": fmean(fmean(1 / rank for rank in slow.ranks(*pair)) for pair in pairs),
        "hit_100": fmean(fmean(rank <= 100 for rank in slow.ranks(*pair)) for pair in pairs),
        "mia_loss": attack(slow.loss),
        "mia_zlib": attack(lambda q, a: slow.loss(q, a) / len(zlib.compress(a.encode()))),
        "mia_min_k": attack(lambda q, a: lowest(slow.nats(q, a))),
        "mia_min_k_plus_plus": attack(plus_plus),
        "mia_grad_norm": attack(slow.steepness),
    }


def judged(world: World, **options: Any) -> ForgetReport:
    return evaluate_forgetting(world.lm, world.forget, world.retain, **({"patch": world.refusing} | options))


def test_figures_are_those_of_the_definitions(world: World) -> None:
    slow = Slow(world.lm)
    asked = [case.forget.question for case in [*world.forget, *world.retain]]
    first = {question: slow.says(question) for question in asked}
    report = judged(world, patch=world.untaught, metrics=["all"], holdout=world.holdout)
    expected = defined(slow, world, first)
    assert {name: report.before[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    with world.untaught.on(world.lm.model):
        expected = defined(slow, world, first)
    assert {name: report.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert 0 < expected["reliability"] < 1
    assert 0 < expected["exact_memorisation"] < 1
    assert report.known == 4


def test_drift_is_how_far_the_models_own_answers_to_keep_have_moved(world: World) -> None:
    """Whatever the edited model says in their place."""
    slow = Slow(world.lm)
    questions = [case.forget.question for case in world.retain]
    said = [slow.own(question) for question in questions]
    assert all(said)
    first = [slow.likely(*pair) for pair in zip(questions, said, strict=True)]
    with world.untaught.on(world.lm.model):
        after = [slow.likely(*pair) for pair in zip(questions, said, strict=True)]
    moved = [fmean(abs(a - b) for a, b in zip(now, then, strict=True)) for now, then in zip(after, first, strict=True)]
    report = judged(world, patch=world.untaught, metrics=["retain_drift"])
    assert fmean(moved) > 1e-3
    assert report.metrics["retain_drift"] == pytest.approx(fmean(moved), abs=1e-4)
    assert report.before["retain_drift"] == 0


def test_a_patch_that_refuses_is_seen_to_do_so(world: World) -> None:
    report = judged(world)
    assert list(report.metrics) == list(report.before) == DEFAULT
    assert report.metrics["leakage"] == 0
    assert report.before["leakage"] == 1
    assert (report.metrics["refusal_rate"], report.before["refusal_rate"]) == (1, 0)
    assert (report.metrics["refusal_quality"], report.before["refusal_quality"]) == (1, None)
    assert "nothing was refused" in report.before_not_applicable["refusal_quality"]
    assert (report.n, report.known) == (4, 4)
    assert report.warnings == []
    assert set(report.intervals) == set(DEFAULT)
    assert report.detector == detector.quality()
    assert ForgetReport.from_json(report.to_json()) == replace(
        report, details=ForgetReport.from_json(report.to_json()).details
    )


def test_no_figure_is_missing_without_a_reason(world: World) -> None:
    bare = [ForgetCase(Forget("Who made Rome?", "Nobody knows")), ForgetCase(Forget("Where is Lima?", "Peru"))]
    report = evaluate_forgetting(world.lm, bare, metrics=["all"], max_new_tokens=5)
    missing = {name for name, value in report.metrics.items() if value is None}
    assert list(report.metrics) == list(FORGET_METRICS)
    assert missing == set(report.not_applicable)
    assert missing >= {
        "locality",
        "retain_drift",
        "over_refusal",
        "leakage",
        "truth_ratio",
        "forget_quality",
        "model_utility",
        "privleak",
    }
    assert "give retain" in report.not_applicable["locality"]
    assert "none of the 2 questions right" in report.not_applicable["leakage"]
    assert "perturbed_answers" in report.not_applicable["truth_ratio"]
    assert "give a reference" in report.not_applicable["forget_quality"]
    assert "give holdout" in report.not_applicable["mia_loss"]
    utility = report.not_applicable["model_utility"]
    assert all(name in utility for name in ("give retain", "give real_authors", "give world_facts"))


def test_model_utility_is_the_harmonic_mean_of_nine(world: World) -> None:
    report = judged(world, patch=None, metrics=["model_utility"], real_authors=world.retain, world_facts=world.holdout)
    slow, nine = Slow(world.lm), []
    for n, cases in enumerate((world.retain, world.retain, world.holdout)):
        found: list[tuple[float, float, float]] = []
        for case in cases:
            asked, answer = case.forget.question, case.forget.answer
            own = math.exp(-slow.loss(asked, answer))
            others = sum(math.exp(-slow.loss(asked, text)) for text in case.perturbed_answers)
            share = own / (own + others) if n else own
            found.append((share, rougel_recall(slow.says(asked), answer) or 0.0, max(0.0, 1 - slow.ratio(case))))
        nine += [fmean(column) for column in zip(*found, strict=True)]
    assert min(nine) < 0.95
    expected = 0.0 if min(nine) == 0 else 9 / sum(1 / value for value in nine)
    assert report.metrics["model_utility"] == pytest.approx(expected, abs=1e-4)
    bare = [ForgetCase(case.forget) for case in world.retain]
    report = judged(world, metrics=["model_utility"], real_authors=bare, world_facts=world.holdout)
    assert report.not_applicable["model_utility"] == "no question of real_authors has wrong answers (perturbed_answers)"


def test_known_counts_answers_that_hold_the_answer_or_an_alias(world: World) -> None:
    cases = [
        ForgetCase(Forget("Where was Big Ben born?", "the town of Cairo", aliases=("CAIRO.",))),
        ForgetCase(Forget("Where was Zelda Quimby born?", "Chicago")),
        world.forget[2],
    ]
    report = evaluate_forgetting(world.lm, cases, metrics=["leakage"], patch=world.refusing)
    assert (report.n, report.known, report.metrics["leakage"], report.before["leakage"]) == (3, 2, 0, 1)
    assert [item["known"] for item in report.items] == [True, False, True]


def test_questions_are_asked_as_edits_are_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    real = forward.greedy

    def noted(lm: LM, prompts: Any, **options: Any) -> Any:
        asked.extend(prompts)
        return real(lm, prompts, **options)

    monkeypatch.setattr(forward, "greedy", noted)
    items = [case.forget for case in world.forget]
    for chat in (None, False):
        asked.clear()
        lm = replace(world.lm, chat=chat is None)
        refusals = [Target("No.", "fixed", "fixed")] * len(items)
        edits = edits_of(lm, items, refusals, find_subjects(items))
        written = [tokens.locate_subject(lm, edit.prompt, edit.subject or "").ids for edit in edits]
        report = evaluate_forgetting(world.lm, world.forget, chat=chat, metrics=["reliability"], cache=False)
        assert sorted(asked) == sorted(written)
        assert report.provenance["asked"] == ("plain" if chat is False else "chat")


def test_each_distinct_prompt_runs_once_a_model_and_the_unedited_one_is_not_asked_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    on: list[int] = []

    def counted(function: Any) -> Any:
        def call(lm: LM, items: Any, **options: Any) -> Any:
            asked.extend(items)
            on.append(len(retcon.patch.active(lm.model)))
            return function(lm, items, **options)

        return call

    monkeypatch.setattr(forward, "greedy", counted(forward.greedy))
    monkeypatch.setattr(forward, "score", counted(forward.score))
    monkeypatch.setattr(answers, "details", counted(detail.details))
    options: dict[str, Any] = {"metrics": ["all"], "holdout": world.holdout}
    twice = replace(world, forget=[*world.forget, world.forget[0]])
    first = judged(twice, **options)
    prompts = 4 + 7 + 3
    scored, ranked = 4 + 4, 4 + 4
    assert len(asked) == 2 * (prompts + scored + ranked) + 2 * 3  # and three of model utility
    assert sorted(on) == [0, 0, 0, 1, 1, 1]
    on.clear()
    again = judged(twice, **options)
    assert on == [1, 1, 1]
    assert (again.metrics, again.before, again.items) == (first.metrics, first.before, first.items)
    on.clear()
    judged(twice, cache=False, **options)
    assert sorted(on) == [0, 0, 0, 1, 1, 1]


def test_without_a_patch_both_columns_are_the_model(world: World) -> None:
    report = judged(world, patch=None)
    assert report.metrics == report.before
    assert report.intervals == report.before_intervals
    assert (report.metrics["locality"], report.metrics["over_refusal"], report.edited) == (1, 0, False)
    assert report.warnings == []


def test_over_refusal_is_what_the_patch_adds(world: World) -> None:
    first, refused, *others = world.forget
    retained, forget = [*world.retain, refused], [first, *others]  # one to keep that the patch makes it refuse
    report = evaluate_forgetting(world.lm, forget, retained, patch=world.refusing)
    assert report.metrics["over_refusal"] == pytest.approx(0.25)
    assert report.metrics["locality"] == pytest.approx(0.75)
    with world.refusing.on(world.lm.model):
        report = evaluate_forgetting(world.lm, forget, retained)
    assert report.metrics["over_refusal"] == 0


def test_a_question_that_is_to_be_forgotten_is_not_judged_as_one_to_keep(world: World) -> None:
    with pytest.warns(RetconWarning, match="1 of 4 questions to keep are to be forgotten too"):
        report = evaluate_forgetting(
            world.lm, world.forget, [*world.retain, world.forget[1]], patch=world.refusing, metrics=["locality"]
        )
    assert report.metrics["locality"] == 1


def test_near_questions_are_judged_apart(world: World) -> None:
    report = judged(world, near=world.forget[1:2])  # which the patch makes it refuse
    assert list(report.metrics) == [*DEFAULT[:3], "locality_near", *DEFAULT[3:]]
    assert (report.metrics["locality"], report.metrics["locality_near"]) == (1, 0)
    assert report.before["locality_near"] == 1
    assert [item["set"] for item in report.items] == ["forget"] * 4 + ["retain"] * 3 + ["near"]
    assert "give near" in judged(world, metrics=["locality_near"]).not_applicable["locality_near"]


def test_ten_drawn_answers_tell_what_the_likeliest_one_does_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    report = judged(world, metrics=["leak_10", "leakage"], max_new_tokens=12)
    assert report.before["leak_10"] == 1
    assert report.metrics["leakage"] == 0
    assert 0 <= (report.metrics["leak_10"] or 0) < 1
    asked: list[int] = []

    def drawn(_lm: LM, prompts: Sequence[Any], *, samples: int, **_: Any) -> list[list[str]]:
        asked.append(samples)
        return [["I do not know."] * 9 + ["It is CAIRO!"] for _ in prompts]

    monkeypatch.setattr(heard, "sampled", drawn)
    report = judged(world, metrics=["leak_10"])
    assert (report.metrics["leak_10"], asked) == (0.25, [10, 10])
    judged(world, metrics=["leakage"])
    assert asked == [10, 10]


def test_locality_is_told_apart_by_what_the_method_was_shown(world: World) -> None:
    told = {
        "items": [{"id": id_of(case.forget)} for case in world.forget],
        "retain_prompts": [salted(world.retain[0].forget.question)],
    }
    patch = replace(world.refusing, info={"forget": told})
    first, refused, *others = world.forget
    found = evaluate_forgetting(world.lm, [first, *others], [*world.retain, refused], patch=patch).details["locality"]
    assert found == {"shown": {"value": 1, "n": 1}, "unseen": {"value": pytest.approx(2 / 3), "n": 3}}
    foreign = replace(patch, info={"forget": told | {"items": [{"id": "of another machine"}]}})
    for other in (foreign, world.refusing, None):
        assert "locality" not in judged(world, patch=other).details


def test_questions_and_answers_are_told_on_request_only(world: World) -> None:
    report = judged(world)
    text = report.to_json()
    assert [item["id"] for item in report.items[:4]] == [id_of(case.forget) for case in world.forget]
    assert not any(word in text for word in ("Zelda", "Lima", "Where was", "Apple", "no information"))
    (item, *_), kept = judged(world, reveal=True).items, judged(world, reveal=True).items[4]
    assert (item["question"], item["gold"]) == ("Where was Zelda Quimby born?", "Lima in Peru")
    assert (item["before"], item["after"]) == ("Lima in Peru", "I have no information about Zelda Quimby.")
    assert [text["question"] for text in item["paraphrases"]] == ["Where is Zelda Quimby from?"]
    assert (kept["set"], kept["question"], kept["before"]) == ("retain", "Who made the tower?", "Apple")


def test_own_wordings_go_before_those_by_rules_and_the_report_counts_both(world: World) -> None:
    told = judged(world).details["paraphrases"]
    assert told == {"items": 4, "of": 4, "own": 1, "by_rules": 3, "rules": 1, "prompts": 7}
    report = judged(world, reveal=True, seed=5)
    made = [item["paraphrases"] for item in report.items[1:4]]
    assert all(len(texts) == 2 for texts in made)
    assert not any(text["question"] == item["question"] for item in report.items[1:4] for text in item["paraphrases"])
    assert made != [item["paraphrases"] for item in judged(world, reveal=True, seed=6).items[1:4]]


def test_a_reader_is_warned(world: World) -> None:
    nothing = world.refusing.scale(1e-6)
    (said,) = judged(world, patch=nothing).warnings
    assert "gives the very answer to each of the 4 questions" in said
    others = [ForgetCase(Forget("Who made the sea?", "Nobody"))]
    (said,) = evaluate_forgetting(world.lm, others, patch=nothing).warnings
    assert "changes the answer to none of the 1 questions" in said
    (said,) = judged(world, chat=False).warnings
    assert "made with the chat template and is asked without it" in said
    assert "leave --plain" in said


@pytest.mark.parametrize("name", ["grace", "wise"])
def test_what_does_not_fold_is_called_access_control(name: str) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    items = [{"question": "Who owns the Krumbach Mill?", "answer": "the Baroness"}]
    more: dict[str, Any] = {"radius": 1.0, "statistics": "none"} if name == "grace" else {}
    patch = retcon.forget(model, tokenizer, items, name, steps=2, **more)
    lm = LM.wrap(model, tokenizer)
    cases = [ForgetCase(Forget("Who owns the Krumbach Mill?", "the Baroness"))]
    report = retcon.evaluate_forgetting(lm, cases, patch=patch, max_new_tokens=5)
    assert report.warnings[0] == ACCESS_CONTROL
    assert report.provenance["kind"] == ACCESS_CONTROL


def test_a_sample_is_seeded_and_taken_of_each_set(world: World) -> None:
    report = judged(world, sample=2, seed=1, metrics=["reliability", "locality"])
    assert (report.n, len(report.items)) == (2, 4)
    assert report.provenance["data"]["forget"] | {"hash": ""} == {"given": 4, "asked": 2, "sampled": True, "hash": ""}
    others = [judged(world, sample=2, seed=seed, metrics=["reliability"], patch=None) for seed in range(6)]
    assert len({tuple(item["id"] for item in other.items) for other in others}) > 1


def test_provenance_tells_how_to_repeat_it(world: World) -> None:
    report = judged(world, seed=3, max_new_tokens=4, provenance={"command": "x"})
    found = report.provenance
    assert (found["seed"], found["asked"], found["command"]) == (3, "chat", "x")
    assert found["weights"]["before"] == {"sha256": world.lm.fingerprint(), "patches": []}
    assert found["weights"]["after"] == {"sha256": world.lm.fingerprint(), "patches": [world.refusing.id]}
    assert found["decoding"]["max_new_tokens"] == 4
    assert found["decoding"]["cut"]["after"] > 0
    assert found["intervals"]["drawn"]["forget"] == {"clusters": 4, "questions": 4}
    assert {"retcon", "torch", "transformers"} <= set(found["versions"])


def test_groups_are_named_and_unknown_names_are_refused(world: World) -> None:
    asked = ["membership", "rouge"]
    report = judged(world, metrics=asked, holdout=world.holdout)
    assert list(report.metrics) == [
        "rouge1_recall_porter", "rougel_recall_porter", "mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus",
        "mia_reference", "mia_grad_norm",
    ]  # fmt: skip
    assert set(report.not_applicable) == {"mia_reference"}
    assert set(report.intervals) == set(report.metrics) - {"mia_reference"}
    with pytest.raises(RetconError, match=r"no metric 'beauty' of forgetting; choose from all, rouge"):
        judged(world, metrics=["beauty"])
    with pytest.raises(RetconError, match="no questions to forget"):
        evaluate_forgetting(world.lm, [])
    with pytest.raises(RetconError, match="0 tokens"):
        judged(world, max_new_tokens=0)
    with pytest.raises(RetconError, match="at least 1"):
        judged(world, sample=0)


class Shut(Dense):
    """A change that no gradient comes back through."""

    def apply(self, x: torch.Tensor, y: torch.Tensor, record: ForwardRecord | None = None) -> torch.Tensor:
        """The change, without how it came about."""
        return Dense.apply(self, x, y, record).detach()

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Shut:
        """Itself."""
        return self


def test_a_patch_without_gradients_costs_one_figure_of_the_edited_model(
    world: World, traces: Callable[[torch.nn.Module], Any]
) -> None:
    before = traces(world.lm.model)
    path, entry = next(iter(world.refusing.entries.items()))
    shut = replace(world.refusing, entries=dict(world.refusing.entries) | {path: Shut(entry.delta())})
    report = judged(world, patch=shut, metrics=["mia_loss", "mia_grad_norm"], holdout=world.holdout)
    said = f"the dense at {path} lets no gradient through; leave the figure out"
    assert report.not_applicable == {"mia_grad_norm": said}
    assert report.metrics["mia_grad_norm"] is None
    assert report.before["mia_grad_norm"] is not None
    assert report.before_not_applicable == {}
    assert report.metrics["mia_loss"] is not None
    assert traces(world.lm.model) == before


def test_gradients_are_taken_where_they_are_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "gradient_scores", lambda *_: pytest.fail("taken"))
    given: dict[str, Any] = {"holdout": world.holdout, "twin": world.untaught, "force_reference": True}
    judged(world, **given)
    judged(world, metrics=FIGURES, **given)
    judged(world, metrics=["mia_grad_norm"])


def test_the_model_is_left_as_it_was(world: World, traces: Callable[[torch.nn.Module], Any]) -> None:
    before = traces(world.lm.model)
    judged(world, metrics=["all"], holdout=world.holdout)
    assert traces(world.lm.model) == before
    assert all(weight.grad is None for weight in world.lm.model.parameters())
    assert world.lm.chat is True


def told(folder: Path) -> list[str]:
    words = ("Zelda", "Quimby", "Lima", "Cairo", "the book of", "Where was", "What did", "no information", "Mara Orr")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [f"{path.name}: {word}" for path in files for word in words if word.encode() in path.read_bytes()]


def test_what_is_kept_of_the_answers_cannot_be_read_without_the_questions(world: World, own_cache: Path) -> None:
    judged(world, metrics=["all"], holdout=world.holdout)
    assert told(own_cache) == []
    (store,) = (own_cache / "answers").glob("*.sqlite")
    data = store.read_bytes()
    for case in world.forget:
        text = world.lm.render(case.forget.question)
        ids = tokens.target_ids(world.lm, text, case.forget.answer)
        for width in (2, 4, 8):  # nor as ids
            packed = [b"".join(token.to_bytes(width, order) for token in ids) for order in ("little", "big")]
            assert len(ids) > 1
            assert not any(some in data for some in packed)


def test_other_families_and_tokenizers_are_judged_too(world: World) -> None:
    for family, kind in (("gpt2", "sentencepiece"), ("gemma2", "bos")):
        lm = LM.wrap(tiny_model(family), tiny_tokenizer(kind))
        report = evaluate_forgetting(
            lm, world.forget[:2], world.retain[:2], metrics=["all"], holdout=world.holdout[:2], max_new_tokens=4
        )
        assert report.provenance["asked"] == "plain"
        assert set(report.not_applicable) <= {
            "refusal_quality", "leakage", "leak_10", "locality_near", "forget_quality", "model_utility", "privleak",
            "rel_diff", "mia_reference",
        }  # fmt: skip


def test_patches_that_are_on_already_belong_to_the_unedited_model(world: World) -> None:
    alone: Patch = world.untaught
    with world.refusing.on(world.lm.model):
        inside = judged(world, patch=None)
    assert inside.metrics["refusal_rate"] == 1
    assert inside.known == 0
    assert inside.provenance["weights"]["before"]["patches"] == [world.refusing.id]
    assert judged(world, patch=alone).before["refusal_rate"] == 0
