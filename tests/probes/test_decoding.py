"""leak@k: samples of each question from seeds of their own."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from retcon.errors import RetconError
from retcon.patch import Patch
from retcon.probes.decoding import Decoding, run
from retcon.probes.scene import ORIGINAL, UNLEARNED, Scene

SceneOf = Callable[..., Scene]


def test_samples_are_drawn_by_seed_and_an_items_do_not_depend_on_the_others(
    suppressing: Patch, scene_of: SceneOf
) -> None:
    scene = scene_of(suppressing, n=3, reveal=True)
    config = Decoding(samples=4)
    (found,), (again,) = run(scene, config), run(scene, config)
    assert found.texts == again.texts
    assert all(len(set(texts)) > 1 for texts in found.texts[UNLEARNED].values())
    (alone,) = run(replace(scene, cases=scene.cases[:1], plain={k: v[:1] for k, v in scene.plain.items()}), config)
    assert alone.texts[ORIGINAL][0] == found.texts[ORIGINAL][0]
    (other,) = run(replace(scene, seed=1), config)
    assert other.texts != found.texts


def test_near_temperature_zero_samples_are_the_greedy_answer(suppressing: Patch, scene_of: SceneOf) -> None:
    (found,) = run(scene_of(suppressing), Decoding(samples=2, temperature=1e-4))
    assert found.share(ORIGINAL) == found.share_of_tries(ORIGINAL) == 1


@pytest.mark.parametrize("options", [{"samples": 0}, {"temperature": 0.0}])
def test_senseless_options_are_refused(options: dict[str, float], suppressing: Patch, scene_of: SceneOf) -> None:
    with pytest.raises(RetconError, match="the decoding probe"):
        next(run(scene_of(suppressing, n=1), Decoding(**options)))  # type: ignore[arg-type]
