"""The model without what is to be forgotten: its record, and all that it is refused for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from tests.evaluate.forgetting.conftest import World

from retcon import tokens
from retcon.errors import RetconError
from retcon.evaluate import Reference, evaluate_forgetting, reference_record
from retcon.evaluate.forgetting.reference import Marks, marks
from retcon.lm import LM
from retcon.requests import Forget, ForgetCase
from retcon.testing import tiny_model, tiny_tokenizer

MARKS = Marks(items="a", retain="b", tokenizer="c", template="d")
FIT = Reference(
    marks=MARKS,
    n={"forget": 2, "holdout": 1},
    probability=0.1,
    truth_ratios=[0.9, None],
    membership={"mia_min_k": 0.5},
    losses={"forget": [1.25, None], "holdout": [0.1]},
    learned=0.8,
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = FIT.save(tmp_path / "reference.json")
    assert Reference.load(path) == FIT
    assert json.loads(path.read_text())["role"] == "retain_only"
    assert FIT.twin.ratios == [0.9, None]
    assert FIT.twin.auc == 0.5
    assert FIT.twin.losses == {"forget": [1.25, None], "holdout": [0.1]}


def test_a_record_of_before_losses_were_kept_is_read_and_fit(tmp_path: Path) -> None:
    path = FIT.save(tmp_path / "reference.json")
    data = json.loads(path.read_text())
    del data["losses"], data["learned"]
    path.write_text(json.dumps(data))
    old = Reference.load(path)
    assert old == replace(FIT, losses={}, learned=None)
    (said,) = old.problems(MARKS, 0.9, 0.9)
    assert "make it again" in said
    assert Reference.load(old.save(path)) == old


def test_a_fit_record_has_no_problem() -> None:
    assert FIT.problems(MARKS, 0.9, 0.9) == []
    (said,) = FIT.problems(MARKS, 0.9)
    assert "give them as retain" in said


@pytest.mark.parametrize("name", ["items", "retain", "tokenizer", "template"])
@pytest.mark.parametrize("force", [False, True])
def test_a_record_of_something_else_is_never_taken(name: str, force: bool) -> None:
    other = replace(MARKS, **{name: "z"})
    words = {"items": "other questions to forget", "retain": "other questions to keep"}.get(name, name)
    with pytest.raises(RetconError, match=f"made with .*{words}.*; make it again"):
        FIT.problems(other, 0.9, force=force)


@pytest.mark.parametrize(
    ("change", "tuned", "words"),
    [
        ({"probability": 0.9}, 0.9, "as likely \\(0.9\\) as the model"),
        ({"probability": None}, 0.9, "\\(none\\)"),
        ({}, None, "\\(none\\)"),
        ({"membership": {"mia_min_k": 0.66}}, 0.9, "AUC 0.66, not between 0.35 and 0.65"),
        ({"membership": {"mia_min_k": 0.34}}, 0.9, "AUC 0.34"),
        ({"learned": 0.3}, 0.9, "the answers to keep much less likely \\(0.3\\) than .* \\(0.7\\), as one"),
    ],
)
def test_a_record_whose_figures_speak_against_it_is_taken_by_force_alone(
    change: dict[str, Any], tuned: float | None, words: str
) -> None:
    reference = replace(FIT, **change)
    with pytest.raises(RetconError, match=f"trained on all but the questions to forget: .*{words}.*--force-reference"):
        reference.problems(MARKS, tuned, 0.7)
    (said,) = reference.problems(MARKS, tuned, 0.7, force=True)
    assert "by force" in said


def test_another_role_is_refused_and_missing_membership_is_told() -> None:
    with pytest.raises(RetconError, match="role 'full'"):
        replace(FIT, role="full").problems(MARKS, 0.9, force=True)
    (said,) = replace(FIT, membership={}).problems(MARKS, 0.9, 0.9)
    assert "give holdout" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "no reference of version 1"),
        ('{"format": "retcon-reference", "version": 2}', "no reference of version 1"),
        ('{"format": "retcon-reference", "version": 1}', "a damaged reference"),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_no_record_are_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "reference.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RetconError, match=f"{words}.*--role retain-only"):
        Reference.load(path)


@pytest.mark.parametrize("key", ["probability", "truth_ratios", "membership", "marks"])
def test_a_record_with_a_wrong_value_is_refused(tmp_path: Path, key: str) -> None:
    path = FIT.save(tmp_path / "reference.json")
    path.write_text(
        json.dumps({**json.loads(path.read_text()), key: ["no", {}] if key != "membership" else {"a": "b"}})
    )
    with pytest.raises(RetconError, match="damaged"):
        Reference.load(path)


@pytest.mark.parametrize(
    "losses",
    [{"forget": [0.5]}, {"forget": [0.5], "holdout": [1]}, {"forget": [0.5, "1"], "holdout": [1]}, [0.5], None],
)
def test_losses_that_are_not_one_an_item_are_refused(tmp_path: Path, losses: Any) -> None:
    path = FIT.save(tmp_path / "reference.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "losses": losses}))
    with pytest.raises(RetconError, match="damaged"):
        Reference.load(path)


def test_marks_tell_items_order_answers_and_how_they_are_asked(world: World) -> None:
    first, second = world.forget[:2]
    sets = {"forget": [first, second], "holdout": []}

    def made(lm: LM = world.lm, retain: Any = world.retain, **other: Any) -> Marks:
        return marks(lm, sets | other, retain)

    same = made()
    assert same == made()
    for other in ([second, first], [first], [first, replace(second, perturbed_answers=("Lima",))]):
        assert made(forget=other).items != same.items
    assert made(holdout=world.holdout).items != same.items
    assert made(retain=world.retain[:2]).retain != same.retain
    assert made(replace(world.lm, chat=False)).template != same.template
    assert made(LM.wrap(world.lm.model, tiny_tokenizer("bos"))).tokenizer != same.tokenizer
    assert not any(word in str(same) for word in ("Zelda", "Lima"))


def test_a_record_holds_no_text(world: World, tmp_path: Path) -> None:
    record = reference_record(world.twin, world.forget, retain=world.retain, holdout=world.holdout)
    text = record.save(tmp_path / "r.json").read_text()
    assert not any(word in text for word in ("Zelda", "Lima", "born", "Apple", "Ida"))
    assert record.n == {"forget": 4, "holdout": 4}
    assert set(record.membership) == {"mia_loss", "mia_zlib", "mia_min_k"}
    assert len(record.truth_ratios) == 4


def test_a_record_keeps_the_loss_of_each_answer_in_order(world: World) -> None:
    record = reference_record(world.twin, world.forget, retain=world.retain, holdout=world.holdout)
    with torch.no_grad():
        for name, cases in (("forget", world.forget), ("holdout", world.holdout)):
            assert record.losses[name] == pytest.approx([loss(world.twin, case) for case in cases], rel=1e-4)
    alone = reference_record(world.twin, world.forget, retain=world.retain)
    assert alone.losses == {"forget": pytest.approx(record.losses["forget"]), "holdout": []}


def loss(lm: LM, case: ForgetCase) -> float:
    """-mean log p of a token of the answer and its end, from one row of logits."""
    text = lm.render(case.forget.question)
    start, wanted = tokens.encode(lm, text), tokens.target_ids(lm, text, f"{case.forget.answer}</s>")
    rows = lm.model(torch.tensor([start + wanted])).logits[0].double().log_softmax(-1)[len(start) - 1 : -1]
    return -fmean(float(row[token]) for row, token in zip(rows, wanted, strict=True))


def test_losses_are_attacked_against_those_of_the_reference(world: World, tmp_path: Path) -> None:
    sets = {"forget": world.forget, "holdout": world.holdout}
    with torch.no_grad():
        apart = {name: [loss(world.lm, case) - loss(world.twin, case) for case in sets[name]] for name in sets}
        with world.untaught.on(world.lm.model):
            later = {name: [loss(world.lm, case) - loss(world.twin, case) for case in sets[name]] for name in sets}
    record = reference_record(world.twin, world.forget, retain=world.retain, holdout=world.holdout)
    read = Reference.load(record.save(tmp_path / "r.json"))
    options: dict[str, Any] = {"metrics": ["mia_reference"], "holdout": world.holdout, "force_reference": True}

    def judged(**more: Any) -> Any:
        return evaluate_forgetting(world.lm, world.forget, world.retain, **(options | more))

    report = judged(twin=read, patch=world.untaught)
    assert report.before == {"mia_reference": area(**apart)}
    assert report.metrics == {"mia_reference": area(**later)}
    assert area(**later) < area(**apart) > 0.8
    assert set(report.intervals) == set(report.before_intervals) == {"mia_reference"}
    spot = judged(twin=world.twin, patch=world.untaught)
    assert (spot.metrics, spot.before, spot.intervals) == (report.metrics, report.before, report.intervals)
    for twin, more, reason in (
        (replace(read, losses={}), {}, "the record of the reference has no losses; make it again"),
        (None, {}, "there is no model trained without the questions to forget; give a reference"),
        (None, {"holdout": ()}, "there are no questions that no model was trained on; give holdout"),
    ):
        report = judged(twin=twin, **more)
        assert report.metrics == {"mia_reference": None}
        assert report.not_applicable == report.before_not_applicable == {"mia_reference": reason}
        assert report.intervals == {}


def area(forget: list[float], holdout: list[float]) -> float:
    return fmean((h > f) + 0.5 * (h == f) for f in forget for h in holdout)


def test_a_later_run_reads_the_record_of_an_earlier_one(world: World, tmp_path: Path) -> None:
    record = reference_record(world.twin, world.forget, retain=world.retain, holdout=world.holdout)
    read = Reference.load(record.save(tmp_path / "r.json"))
    options: dict[str, Any] = {"patch": world.refusing, "holdout": world.holdout, "force_reference": True}
    report = evaluate_forgetting(world.lm, world.forget, world.retain, twin=read, **options)
    spot = evaluate_forgetting(world.lm, world.forget, world.retain, twin=world.twin, **options)
    assert list(report.metrics)[-3:] == ["forget_quality", "privleak", "rel_diff"]
    assert report.metrics == pytest.approx(spot.metrics)
    assert report.details["forget_quality"]["after"]["n"] == (4, 4)
    assert report.before["privleak"] is not None
    assert report.before["privleak"] < 0  # before, the answers look memorised
    assert report.provenance["reference"]["fingerprint"] == world.twin.fingerprint()


def test_the_twin_is_its_own_equal(world: World) -> None:
    """A model that is its twin has forget quality 1 and privleak 0."""
    options: dict[str, Any] = {"twin": world.untaught, "holdout": world.holdout, "force_reference": True}
    report = evaluate_forgetting(world.lm, world.forget, world.retain, patch=world.untaught, **options)
    assert (report.metrics["forget_quality"], report.metrics["privleak"], report.metrics["rel_diff"]) == (1, 0, 0)
    assert report.before["forget_quality"] != 1


def test_the_tuned_model_is_not_taken_for_its_own_twin(world: World) -> None:
    wrong = reference_record(world.lm, world.forget, retain=world.retain)
    with pytest.raises(RetconError, match="as likely .* as the model that is to forget"):
        evaluate_forgetting(world.lm, world.forget, world.retain, twin=wrong)
    report = evaluate_forgetting(world.lm, world.forget, world.retain, twin=wrong, force_reference=True)
    assert any("by force" in said for said in report.warnings)
    assert any("give holdout" in said for said in report.warnings)


def test_a_model_that_was_trained_on_nothing_is_no_twin(world: World) -> None:
    """The likeliest mistake: the model that the tuned one was made from."""
    base = LM.wrap(tiny_model("llama", layers=2), tiny_tokenizer(), chat=True)
    with pytest.raises(RetconError, match="the answers to keep much less likely .* not trained on them"):
        evaluate_forgetting(world.lm, world.forget, world.retain, twin=base)
    report = evaluate_forgetting(world.lm, world.forget, world.retain, twin=world.twin)
    assert not any("by force" in said for said in report.warnings)


def test_a_record_of_plain_questions_does_not_judge_questions_in_chat(world: World) -> None:
    plain = reference_record(world.twin, world.forget, retain=world.retain, chat=False)
    with pytest.raises(RetconError, match="chat template"):
        evaluate_forgetting(world.lm, world.forget, world.retain, twin=plain)
    with pytest.raises(RetconError, match="other questions to forget"):
        evaluate_forgetting(world.lm, world.forget[::-1], world.retain, twin=plain, chat=False)
    with pytest.raises(RetconError, match="other questions to keep"):
        evaluate_forgetting(world.lm, world.forget, twin=plain, chat=False)


def test_a_model_of_other_tokens_is_refused_before_it_is_asked(world: World) -> None:
    other = LM.wrap(tiny_model("llama", seed=1), tiny_tokenizer("bos"))
    with pytest.raises(RetconError, match="another tokenizer"):
        evaluate_forgetting(world.lm, world.forget, world.retain, twin=other, metrics=["forget_quality"])


def test_without_wrong_answers_there_is_no_test(world: World) -> None:
    bare = [ForgetCase(Forget(case.forget.question, case.forget.answer)) for case in world.forget]
    report = evaluate_forgetting(
        world.lm, bare, world.retain, twin=world.twin, metrics=["forget_quality", "privleak"], patch=world.refusing
    )
    assert report.metrics == {"forget_quality": None, "privleak": None}
    assert "perturbed_answers" in report.not_applicable["forget_quality"]
    assert "give holdout" in report.not_applicable["privleak"]


def test_a_record_needs_the_questions_that_its_model_was_trained_on(world: World) -> None:
    with pytest.raises(RetconError, match="give retain"):
        reference_record(world.twin, world.forget, retain=[])
    with pytest.raises(RetconError, match="no questions to forget"):
        reference_record(world.twin, [], retain=world.retain)
