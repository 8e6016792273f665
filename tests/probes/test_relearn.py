"""Relearning: the curve, the halves, and what training leaves behind."""

from collections.abc import Callable

import pytest
import torch

from retcon import patch as patches
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.training_rows import row_of
from retcon.metrics.texts import normal
from retcon.patch import Patch
from retcon.probes.relearn import Relearn, area, benign, disjoint, halves, relearned, same
from retcon.probes.scene import ORIGINAL, TWIN, UNLEARNED, Scene
from retcon.requests import ForgetCase

SceneOf = Callable[..., Scene]
QUICK = Relearn(steps=(1, 4, 12), lr=(5e-3,))


def test_the_area_is_the_mean_height_over_the_logarithm_of_steps() -> None:
    assert area({0: 0.5}) == 0.5
    assert area({0: 1.0, 3: 1.0, 50: 1.0}) == 1.0
    assert area({0: 0.0, 1: 0.0, 3: 1.0}) == 0.25


def test_halves_share_no_answer_and_depend_on_the_seed_alone() -> None:
    answers = ["Rome", "the Rome", "Lima", "Cairo", "Thai", "rome.", "1,809", "1809"]
    shown, hidden = halves(answers, 0)
    assert sorted(shown + hidden) == list(range(8))
    assert {normal(answers[i]) for i in shown}.isdisjoint(normal(answers[i]) for i in hidden)
    assert halves(answers, 0) == (shown, hidden)
    assert any(halves(answers, seed) != (shown, hidden) for seed in range(1, 6))
    assert halves(["yes", "Yes"], 0) in (([0, 1], []), ([], [0, 1]))


def test_a_patch_is_on_top_of_what_is_on_and_later_steps_do_not_change_it(
    lm: LM, suppressing: Patch, cases: list[ForgetCase], bits: Callable[[LM], object]
) -> None:
    rows = [row_of(lm, case.forget.question, case.forget.answer, eos=True) for case in cases]
    before = bits(lm)
    with suppressing.on(lm.model):
        found = dict(relearned(lm, rows, Relearn(steps=(2, 1)), 1e-3, 0))
        again = dict(relearned(lm, rows, Relearn(steps=(2,)), 1e-3, 0))
        assert list(found) == [1, 2]
        assert {made.parent for made in found.values()} == {suppressing.id}
        with found[2].on(lm.model, check=False):
            assert patches.active(lm.model) == (suppressing, found[2])
    path = lm.arch.mlp_out[0]
    one, two = (made.entries[path].delta() for made in found.values())
    assert not torch.equal(one, two)
    assert torch.equal(two, again[2].entries[path].delta())
    assert bits(lm) == before


def test_full_trains_dense_changes(lm: LM, cases: list[ForgetCase]) -> None:
    rows = [row_of(lm, cases[0].forget.question, cases[0].forget.answer)]
    ((_, made),) = relearned(lm, rows, Relearn(steps=(1,), params="full"), 1e-4, 0)
    assert {entry.kind for entry in made.entries.values()} == {"dense"}


def test_training_on_the_questions_brings_suppressed_answers_back(suppressing: Patch, scene_of: SceneOf) -> None:
    (found,) = same(scene_of(suppressing, reveal=True), QUICK)
    curve = found.detail["curve"][UNLEARNED]
    assert list(curve) == ["0", "1", "4", "12"]
    assert curve["0"] < 0.2
    assert (found.share(UNLEARNED) or 0) > 0.7
    assert found.share(UNLEARNED) == max(curve[step] for step in ("1", "4", "12"))
    assert f"most after {found.detail['best_step'][UNLEARNED]} step" in found.note
    assert found.detail["area"][UNLEARNED] < found.detail["area"][ORIGINAL]
    assert all(len(texts) == 1 for texts in found.texts[UNLEARNED].values())


def test_what_was_erased_does_not_come_back_from_the_other_half(erasing: Patch, scene_of: SceneOf) -> None:
    """A model that never saw the answers stays at guessing; the one that knows them goes on knowing."""
    scene = scene_of(erasing, erasing)
    (found,) = disjoint(scene, Relearn(steps=(1, 8), lr=(1e-3,)))
    assert len(found.out[UNLEARNED]) == len(scene.cases) - found.setting["shown"] == 6
    assert found.out[TWIN] == found.out[UNLEARNED]
    assert found.detail["curve"][TWIN] == found.detail["curve"][UNLEARNED]
    assert (found.share(UNLEARNED) or 0) <= 1 / 6
    assert (found.share(ORIGINAL) or 0) >= 5 / 6


def test_each_learning_rate_is_a_row(suppressing: Patch, scene_of: SceneOf) -> None:
    found = list(same(scene_of(suppressing, n=2), Relearn(steps=(1,), lr=(1e-4, 1e-2))))
    assert [one.setting["lr"] for one in found] == [1e-4, 1e-2]


def test_benign_texts_are_questions_to_keep_and_ordinary_text(suppressing: Patch, scene_of: SceneOf) -> None:
    quick = Relearn(steps=(1,))
    kept, text = benign(scene_of(suppressing, n=2), quick)
    assert (kept.setting["trained"], text.setting["trained"]) == ("questions to keep", "ordinary text")
    assert kept.out[UNLEARNED].keys() == text.out[UNLEARNED].keys() == {0, 1}
    none, _ = benign(scene_of(suppressing, n=2, retain=()), quick)
    assert none.note == "n/a: give questions to keep (retain)"


def test_one_answer_alone_has_no_halves(suppressing: Patch, scene_of: SceneOf) -> None:
    (found,) = disjoint(scene_of(suppressing, n=1), QUICK)
    assert found.note.startswith("n/a: two halves")


@pytest.mark.parametrize("options", [{"steps": ()}, {"steps": (0,)}, {"batch": 0}, {"lr": ()}, {"lr": (0.0,)}])
def test_senseless_options_are_refused(options: dict[str, object], suppressing: Patch, scene_of: SceneOf) -> None:
    with pytest.raises(RetconError, match="the relearning probes"):
        list(same(scene_of(suppressing, n=1), Relearn(**options)))  # type: ignore[arg-type]


def test_a_memory_stays_in_force_while_training_goes_on_top_of_it(denying: Patch, scene_of: SceneOf) -> None:
    (found,) = same(scene_of(denying, n=3), Relearn(steps=(1,)))
    assert found.detail["curve"][UNLEARNED]["0"] == 0
