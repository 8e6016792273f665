"""The quantisation probe: both orders, every arm, and a small change that rounding undoes."""

from collections.abc import Callable

import pytest

from retcon.lm import LM
from retcon.patch import Patch
from retcon.probes.quantise import Quantise, run
from retcon.probes.scene import ORIGINAL, UNLEARNED, Scene

SceneOf = Callable[..., Scene]


def test_both_orders_are_tried_and_a_model_without_a_patch_is_the_same_in_both(
    suppressing: Patch, scene_of: SceneOf
) -> None:
    merged, attached = run(scene_of(suppressing, reveal=True), Quantise(bits=(3,)))
    assert (merged.setting["order"], attached.setting["order"]) == ("merged", "attached")
    assert merged.texts[ORIGINAL] == attached.texts[ORIGINAL]
    assert merged.texts[UNLEARNED] != attached.texts[UNLEARNED]  # in three bits, what is merged is rounded too
    assert merged.texts[UNLEARNED] != merged.texts[ORIGINAL]


def test_eight_bits_keep_what_is_known_and_what_is_suppressed(suppressing: Patch, scene_of: SceneOf) -> None:
    scene = scene_of(suppressing, suppressing)
    for found in run(scene, Quantise(bits=(8,))):
        assert (found.share(ORIGINAL) or 0) >= 0.9
        assert (found.share(UNLEARNED) or 0) <= 0.1
        assert found.out["twin"] == found.out[UNLEARNED]
        assert not found.texts


def test_the_erased_model_rounded_gives_nothing_in_any_row(erasing: Patch, scene_of: SceneOf) -> None:
    found = list(run(scene_of(erasing), Quantise(group=16)))
    assert [(one.setting["bits"], one.setting["order"]) for one in found] == [
        (8, "merged"), (8, "attached"), (4, "merged"), (4, "attached"),
    ]  # fmt: skip
    assert all(one.share(UNLEARNED) == 0 for one in found)


def test_a_memory_cannot_be_merged_and_stands_on_rounded_weights(denying: Patch, scene_of: SceneOf) -> None:
    merged, attached = run(scene_of(denying, n=4), Quantise(bits=(8,)))
    assert merged.note.startswith("n/a: the patch is no change of weights")
    assert not merged.out
    assert set(attached.out[UNLEARNED]) == {0, 1, 2, 3}


@pytest.mark.parametrize("orders", [("merged",), ("attached",)])
def test_the_model_is_left_as_it_was(
    orders: tuple[str, ...], lm: LM, suppressing: Patch, scene_of: SceneOf, bits: Callable[[LM], object]
) -> None:
    before = bits(lm)
    list(run(scene_of(suppressing, n=2), Quantise(bits=(4,), orders=orders)))  # type: ignore[arg-type]
    assert bits(lm) == before
