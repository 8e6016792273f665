"""Detaching: everything comes back of what can be taken off."""

from collections.abc import Callable

from retcon.patch import Patch
from retcon.probes.detach import Detach, run
from retcon.probes.record import row
from retcon.probes.scene import Scene

SceneOf = Callable[..., Scene]


def test_without_a_memory_all_is_as_before_by_construction(denying: Patch, scene_of: SceneOf) -> None:
    scene = scene_of(denying)
    (found,) = run(scene, Detach())
    result = row(scene, "detach", found, 0.0)
    assert (result.recovery, result.attacked, result.n) == (1.0, 1.0, 12)
    assert result.note.startswith("by construction")


def test_of_a_merged_model_nothing_can_be_taken_off(suppressing: Patch, scene_of: SceneOf) -> None:
    scene = scene_of(suppressing)
    (found,) = run(scene, Detach())
    result = row(scene, "detach", found, 0.0)
    assert (result.recovery, result.attacked) == (None, None)
    assert result.note == "n/a: the originals are not shipped with a merged model"
