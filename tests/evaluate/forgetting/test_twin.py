"""What a twin is asked, and how."""

import pytest
from tests.evaluate.forgetting.conftest import World

from retcon import forward
from retcon.errors import RetconError
from retcon.evaluate import reference_record
from retcon.evaluate.forgetting.twin import chosen


def test_a_patch_makes_a_twin_of_the_model(world: World) -> None:
    bare = reference_record(world.lm, world.forget, retain=world.retain, holdout=world.holdout)
    patched = reference_record(world.lm, world.forget, retain=world.retain, holdout=world.holdout, patch=world.untaught)
    assert patched.probability is not None
    assert bare.probability is not None
    assert patched.probability < 0.5 < bare.probability
    assert patched.marks == bare.marks
    assert patched.model["patch"]["id"] == world.untaught.id
    assert bare.model["patch"] is None


def test_a_record_is_cached_and_writes_no_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = reference_record(world.twin, world.forget, retain=world.retain, holdout=world.holdout)
    for name in ("score", "greedy"):
        monkeypatch.setattr(forward, name, lambda *_, **__: pytest.fail("asked again"))
    assert reference_record(world.twin, world.forget, retain=world.retain, holdout=world.holdout) == first


def test_sets_are_sampled_apart_and_those_not_given_are_empty(world: World) -> None:
    found = chosen({"forget": world.forget, "retain": world.retain}, 2, 0)
    assert {name: len(cases) for name, cases in found.items()} == {
        "forget": 2, "retain": 2, "near": 0, "holdout": 0, "real_authors": 0, "world_facts": 0,
    }  # fmt: skip
    with pytest.raises(RetconError, match="no questions to forget"):
        chosen({"forget": []}, None, 0)
