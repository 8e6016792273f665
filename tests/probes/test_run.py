"""`probe` as a whole: what is erased, what is suppressed and what is only hidden are told apart, without a trace."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retcon.errors import PatchError, RetconError
from retcon.lm import LM
from retcon.patch import Patch, Step, describe_base
from retcon.probes import PROBES, Decoding, Lens, Probed, Quantise, Relearn, Tokenisation, Wordings, probe
from retcon.requests import Forget, ForgetCase
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.contract import quick

QUICK = [
    Relearn(steps=(1, 4), lr=(5e-3,)),
    Tokenisation(splits=2),
    Decoding(samples=2),
    Quantise(bits=(8,)),
    Wordings(most=1),
]
Bits = Callable[[LM], object]


def probing(lm: LM, cases: list[ForgetCase], patch: Patch, **more: Any) -> Probed:
    options: dict[str, Any] = {"settings": QUICK, "max_new_tokens": 12, "chat": True} | more
    return probe(lm, cases, patch=patch, **options)


def test_true_erasure_is_called_erased_against_its_twin(
    lm: LM, erasing: Patch, cases: list[ForgetCase], kept: list[ForgetCase], bits: Bits, traces: Callable[[Any], object]
) -> None:
    before = bits(lm), traces(lm.model)
    found = probing(lm, cases, erasing, twin=erasing, retain=kept)
    assert (found.asked, found.known, found.unlearned, found.twin) == (12, 12, 0.0, 0.0)
    assert found.kind == "erased", found.verdict()
    for result in found:
        if not result.failed:
            assert result.attacked == result.attacked_twin, result.name
            assert result.n > 0
    assert {result.name for result in found if result.failed} <= {"rephrase", "detach"}
    assert (bits(lm), traces(lm.model)) == before


def test_a_learned_refusal_is_called_suppression(
    lm: LM, suppressing: Patch, erasing: Patch, cases: list[ForgetCase]
) -> None:
    found = probing(lm, cases, suppressing, twin=erasing, names=["relearn_same", "lens"])
    assert found.kind == "suppresses"
    assert "relearn_same" in found.verdict()
    assert probing(lm, cases, suppressing, names=["detach"]).verdict().startswith("Suppresses: 12 answers")


def test_a_memory_is_called_access_control_and_gives_all_back_when_it_is_taken_off(
    lm: LM, denying: Patch, cases: list[ForgetCase]
) -> None:
    found = probing(lm, cases, denying, names=["detach", "quantise"])
    assert found.kind == "denies access"
    detached = found.results[-1]
    assert (detached.name, detached.recovery) == ("detach", 1.0)
    assert [result.failed for result in found] == [True, False, False]


@pytest.mark.parametrize("name", ["ike", "wise"])
def test_every_probe_can_be_made_on_what_looks_at_the_prompt_or_says_why_not(
    name: str, lm: LM, cases: list[ForgetCase], kept: list[ForgetCase]
) -> None:
    edits = [replace(edit, target="chess") for edit in tiny_edits(3)]
    patch = quick(name).edit(lm, edits, retain=[case.forget.question for case in kept])
    own = [replace(case, paraphrases=("What did they make?",)) for case in cases[2:4]]
    found = probing(lm, own, patch, retain=kept, names=["all"], settings=[*QUICK[1:], Relearn(steps=(1,))])
    assert {result.name for result in found} == set(PROBES)
    failed = {result.name for result in found if result.failed}
    trains = {"relearn_same", "relearn_disjoint", "relearn_benign"}
    assert failed == {"quantise"} | (trains if name == "ike" else set())
    assert all(result.note.startswith("n/a: ") for result in found if result.failed)
    assert all(result.recovery in (None, 1.0) for result in found if result.name == "detach")


def test_a_patch_that_changes_nothing_recovers_nothing_since_nothing_was_lost(
    lm: LM, erasing: Patch, cases: list[ForgetCase]
) -> None:
    found = probing(lm, cases, erasing.scale(1e-6), names=["quantise", "decoding"])
    assert found.kind == "forgets nothing"
    assert all(result.recovery is None for result in found)
    assert all(result.attacked == result.attacked_original for result in found)


def test_only_what_the_model_knows_is_attacked(lm: LM, erasing: Patch, cases: list[ForgetCase]) -> None:
    unknown = ForgetCase(Forget("Where was Ada born?", "Oberwinterthal"))
    found = probing(lm, [unknown, *cases[:3]], erasing, names=["lens"])
    assert (found.asked, found.known, found.results[0].n) == (4, 3, 3)
    none = probing(lm, [unknown], erasing, names=["lens", "detach"])
    assert none.kind == "unknown"
    assert all(result.failed and result.note.startswith("n/a: the model before") for result in none)


def test_the_model_before_forgetting_can_be_a_patch_itself(erasing: Patch, cases: list[ForgetCase]) -> None:
    """The bare model knows nothing; `start` teaches it, and the patch on top of that takes it away."""
    bare = LM.wrap(tiny_model("llama"), tiny_tokenizer(), name="tiny", chat=True)
    base = describe_base(bare.model, erasing.entries, name="tiny")
    teaching = Patch(erasing.scale(-1).entries, base, (Step(method="teach", chat=True),))
    taking = Patch(erasing.entries, base, (Step(method="take", parent=teaching.id, chat=True),))
    found = probing(bare, cases, taking, start=teaching, names=["quantise"])
    assert (found.known, found.unlearned) == (12, 0.0)
    assert [result.attacked for result in found] == [0.0, 0.0]
    with pytest.raises(PatchError, match=teaching.id):
        probing(bare, cases, taking)


def test_questions_are_put_as_when_the_patch_was_made(lm: LM, erasing: Patch, cases: list[ForgetCase]) -> None:
    plain = replace(erasing, history=(Step(method="erase", chat=False),))
    for patch, chat, wanted in (
        (erasing, None, True),
        (plain, None, False),
        (plain, True, True),
        (erasing, False, False),
    ):
        assert probing(lm, cases[:1], patch, names=["lens"], chat=chat).chat is wanted


def test_without_reveal_no_text_is_in_the_record_and_with_it_all_are(
    lm: LM, suppressing: Patch, cases: list[ForgetCase], kept: list[ForgetCase]
) -> None:
    usual = probing(lm, cases, suppressing, retain=kept)
    hidden = usual.to_json()
    texts = [text for case in (*cases, *kept) for text in (case.forget.question, case.forget.answer)]
    assert [text for text in texts if text in hidden] == []
    assert [case.forget.subject for case in cases if str(case.forget.subject) in hidden] == []
    told = json.loads(probing(lm, cases, suppressing, names=["decoding"], reveal=True).to_json())
    (result,) = told["results"]
    assert [item["question"] for item in result["items"]] == [case.forget.question for case in cases]
    assert len(result["items"][0]["said"]["unlearned"]) == 2


def test_two_runs_agree(lm: LM, suppressing: Patch, cases: list[ForgetCase]) -> None:
    first, second = (probing(lm, cases, suppressing, names=["tokenisation", "relearn_disjoint"]) for _ in range(2))
    assert [replace(result, seconds=0) for result in first] == [replace(result, seconds=0) for result in second]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"names": ["nothing"]}, "there is no probe 'nothing'"),
        ({"settings": [Lens(), "lens"]}, "str holds the options of no probe"),
    ],
)
def test_wrong_options_are_refused(lm: LM, erasing: Patch, cases: list[ForgetCase], more: Any, said: str) -> None:
    with pytest.raises(RetconError, match=said):
        probing(lm, cases, erasing, **more)


def test_no_question_no_template_and_no_parent_are_refused(lm: LM, erasing: Patch, cases: list[ForgetCase]) -> None:
    with pytest.raises(RetconError, match="nothing to probe for"):
        probing(lm, [], erasing)
    orphan = Patch(erasing.entries, erasing.base, (Step(method="x", parent="f" * 16),))
    with pytest.raises(PatchError, match="f" * 16):
        probing(lm, cases, orphan)
