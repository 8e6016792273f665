"""The tokenisation probe: distinct other splits of the subject or of the whole question, the template left alone."""

import random
from collections.abc import Callable

import pytest

from retcon import tokens
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.patch import Patch
from retcon.probes.scene import ORIGINAL, UNLEARNED, Scene, question_ids
from retcon.probes.splits import Pieces, span_of
from retcon.probes.tokenisation import Tokenisation, other_splits, run
from retcon.requests import ForgetCase

SceneOf = Callable[..., Scene]


def test_splits_are_distinct_not_the_tokenizers_own_and_leave_the_rest_alone(lm: LM, cases: list[ForgetCase]) -> None:
    question = cases[1].forget.question
    own, span = question_ids(lm, question), span_of(lm, question, 5, 16)
    assert question[5:16] == "was made by"
    found, refused = other_splits(Pieces(lm), own, span, Tokenisation(), random.Random(0))
    assert (len(found), refused) == (20, 0)
    assert len(set(map(tuple, found))) == 20
    for ids in found:
        assert ids != own
        assert ids[: span[0]] == own[: span[0]]
        assert ids[len(ids) - (len(own) - span[1]) :] == own[span[1] :]
        assert tokens.decode(lm, ids) == tokens.decode(lm, own)


def test_what_stands_for_other_bytes_is_refused(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    own = question_ids(lm, "Who made the tower?")
    monkeypatch.setattr(Pieces, "text", lambda self, ids: repr(ids).encode())
    found, refused = other_splits(Pieces(lm), own, (3, 6), Tokenisation(splits=3), random.Random(0))
    assert found == []
    assert refused > 0


def test_share_of_questions_and_share_of_splits_for_subject_and_prompt(suppressing: Patch, scene_of: SceneOf) -> None:
    scene = scene_of(suppressing, n=4)
    subject, prompt = run(scene, Tokenisation(splits=3))
    assert (subject.setting["where"], prompt.setting["where"]) == ("subject", "prompt")
    for one in (subject, prompt):
        tried = one.out[UNLEARNED].keys()
        assert one.out[ORIGINAL].keys() == tried
        assert len(tried) <= one.detail["splits_tried"] <= 3 * len(tried)
        assert all(0 <= value <= 1 for value in one.out[UNLEARNED].values())
        assert set(one.detail["share_of_tries"]) == {ORIGINAL, UNLEARNED}
    assert prompt.out[UNLEARNED].keys() == {0, 1, 2, 3}
    assert subject.out[UNLEARNED].keys() == {2, 3}  # the others are cut into single letters as they stand
    assert subject.note == "2 have no other split"
    again = next(run(scene, Tokenisation(splits=3)))
    assert again.out == subject.out


@pytest.mark.parametrize("options", [{"splits": 0}, {"thrift": 0.0}, {"thrift": 1.5}])
def test_senseless_options_are_refused(options: dict[str, float], suppressing: Patch, scene_of: SceneOf) -> None:
    with pytest.raises(RetconError, match="the tokenisation probe"):
        next(run(scene_of(suppressing, n=1), Tokenisation(**options)))  # type: ignore[arg-type]
