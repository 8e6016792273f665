"""Rows: recovery by its definition, notes that say why there is none, items by salted ids."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retcon.errors import RetconError
from retcon.forget.privacy import id_of
from retcon.lm import LM
from retcon.patch import Patch
from retcon.probes import probe
from retcon.probes.record import Probed, recovery, row, together
from retcon.probes.scene import ORIGINAL, UNLEARNED, Finding, Scene
from retcon.requests import ForgetCase

SceneOf = Callable[..., Scene]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_recovery_is_0_at_the_forgotten_and_1_at_the_original_level(attacked: float, low: float, high: float) -> None:
    if abs(high - low) < 0.05:
        assert recovery(attacked, low, high) is None
    else:
        assert recovery(low, low, high) == 0
        assert recovery(high, low, high) == 1
        assert recovery(attacked, low, high) == pytest.approx((attacked - low) / (high - low), abs=1e-6)


def test_without_a_figure_there_is_no_recovery() -> None:
    assert recovery(None, 0.0, 1.0) is recovery(0.5, None, 1.0) is recovery(0.5, 0.0, None) is None


def test_a_row_counts_the_questions_that_were_tried_and_its_plain_shares_are_of_these(
    erasing: Patch, scene_of: SceneOf
) -> None:
    scene = replace(scene_of(erasing, n=4), plain={ORIGINAL: [True] * 4, UNLEARNED: [True, False, False, False]})
    out = {ORIGINAL: {1: 1.0, 2: 1.0}, UNLEARNED: {1: 0.25, 2: 0.0}}
    found = row(scene, "role_play", Finding({"prompt": "role_play"}, out), 1.23456)
    assert (found.n, found.original, found.unlearned) == (2, 1.0, 0.0)
    assert (found.attacked_original, found.attacked, found.attacked_twin) == (1.0, 0.5, None)
    assert (found.recovery, found.seconds, found.note) == (0.5, 1.235, "")
    assert found.items == [
        {"id": id_of(scene.items[1]), "original": 1.0, "unlearned": 0.25},
        {"id": id_of(scene.items[2]), "original": 1.0, "unlearned": 0.0},
    ]


def test_notes_say_why_there_is_no_recovery(erasing: Patch, scene_of: SceneOf) -> None:
    scene = scene_of(erasing, n=2)
    tried = {UNLEARNED: {0: 1.0, 1: 0.0}}
    assert row(scene, "lens", Finding({}), 0).note == "n/a: no question to try it on"
    assert "counts something else" in row(scene, "lens", Finding({}, tried, answers=False), 0).note
    kept = replace(scene, plain={ORIGINAL: [True, True], UNLEARNED: [True, True]})
    found = row(kept, "cloze", Finding({}, tried, note="of old"), 0)
    assert (found.recovery, found.note) == (None, "of old; no recovery: forgetting took less than 0.05 away")


def test_texts_are_kept_only_where_they_may_be_revealed(erasing: Patch, scene_of: SceneOf) -> None:
    out, texts = {UNLEARNED: {0: 1.0}}, {UNLEARNED: {0: ["It is Paris."]}}
    scene = scene_of(erasing, n=1)
    (hidden,) = row(scene, "cloze", Finding({}, out, texts=texts), 0).items
    assert set(hidden) == {"id", UNLEARNED}
    (told,) = row(replace(scene, reveal=True), "cloze", Finding({}, out, texts=texts), 0).items
    assert (told["answer"], told["said"]) == ("Paris", {UNLEARNED: ["It is Paris."]})


def test_looks_at_one_patch_are_put_together_also_from_their_files(
    lm: LM, erasing: Patch, suppressing: Patch, cases: list[ForgetCase]
) -> None:
    parts = [
        probe(lm, cases[:n], patch=erasing, names=[name], max_new_tokens=12)
        for n, name in ((3, "detach"), (4, "cloze"))
    ]
    assert [Probed.from_dict(json.loads(part.to_json())) for part in parts] == parts
    whole = together(parts)
    assert (whole.known, [result.name for result in whole], [result.n for result in whole]) == (
        4,
        ["detach", "cloze"],
        [0, 4],
    )
    assert set(whole.settings) == {"max_new_tokens", "detach", "cloze"}
    assert whole.seconds == pytest.approx(sum(part.seconds for part in parts), abs=1e-3)
    assert whole.verdict().startswith("Suppresses: 4 answers")
    other = probe(lm, cases[:1], patch=suppressing, names=["detach"], max_new_tokens=12)
    with pytest.raises(RetconError, match="one patch and model alone"):
        together([*parts, other])
