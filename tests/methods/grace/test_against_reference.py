"""The fast codebook holds what the plain one holds: values of single facts, losses, keys and radii of several."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from retcon import forward, tokens
from retcon.lm import LM
from retcon.methods.grace import GRACE, GRACEConfig
from retcon.patch import Codebook, Patch
from retcon.requests import Edit
from retcon.testing import tiny_edits
from retcon.testing.reference_grace import PlainGrace

TinyLM = Callable[..., LM]
CONFIG = GRACEConfig(radius=1.0, statistics="none", steps=10, lr=0.1)


def book(patch: Patch) -> Codebook:
    (entry,) = patch.entries.values()
    assert isinstance(entry, Codebook)
    return entry


def plain(lm: LM, config: GRACEConfig, edits: list[Edit]) -> PlainGrace:
    assert config.radius != "auto"
    found = PlainGrace(lm, config, GRACE(config).layer(lm), config.radius)
    for edit in edits:
        found.edit(edit)
    return found


@pytest.mark.parametrize("mode", ["replace_last", "replace_prompt", "replace_all"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_values_of_single_facts_are_those_of_the_plain_search(tiny_lm: TinyLM, family: str, mode: Any) -> None:
    lm, config = tiny_lm(family), replace(CONFIG, replacement=mode)
    near = 1e-5 if mode == "replace_last" else 1e-4  # with more places to sum over, Adam makes more of rounding
    for edit in tiny_edits(3):
        patch, wanted = GRACE(config).edit(lm, [edit]), plain(lm, config, [edit])
        torch.testing.assert_close(book(patch).keys[0], wanted.keys[0].key, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(book(patch).values[0], wanted.keys[0].value, atol=near, rtol=near)
        (fact,), (losses,) = patch.info["facts"], wanted.losses
        assert fact["evaluations"] == len(losses)
        assert fact["loss"] == pytest.approx(min(losses), abs=2e-5)


def test_a_batch_in_fp64_is_the_plain_way_one_fact_after_the_other(tiny_lm: TinyLM) -> None:
    """Radii wide enough that balls meet: like answers share a key, unlike ones split the ground between them."""
    lm, edits = tiny_lm("llama", dtype=torch.float64), tiny_edits(8)
    prompts = [edits[0].prompt, "{} can be found in the city of"]
    edits += [replace(edits[0], prompt=prompts[1], id="like"), replace(edits[1], target="Lima", id="unlike")]
    config = replace(CONFIG, radius=2.5, widest=2.0)
    patch, wanted = GRACE(config).edit(lm, edits), plain(lm, config, edits)
    assert {fact["case"] for fact in patch.info["facts"]} >= {"first", "far"}
    assert book(patch).labels == [tuple(key.label) for key in wanted.keys]
    for name in ("key", "value"):
        both = torch.stack([getattr(key, name) for key in wanted.keys])
        torch.testing.assert_close(getattr(book(patch), f"{name}s"), both, atol=1e-5, rtol=1e-5)
    assert book(patch).radii.tolist() == pytest.approx([key.radius for key in wanted.keys], rel=1e-3)


def test_both_answer_the_same_prompts(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), [replace(edit, target="city") for edit in tiny_edits(4)]
    config = replace(CONFIG, steps=60, lr=0.5)
    patch, wanted = GRACE(config).edit(lm, edits[:2]), plain(lm, config, edits[:2])
    items = [(tokens.encode(lm, edit.text), [tokens.target_ids(lm, edit.text, edit.target)]) for edit in edits]
    with patch.on(lm.model):
        said = [all(found[0].hits) for found in forward.score(lm, items)]
    assert said == [wanted.answers(edit) for edit in edits]
    assert said[:2] == [True, True]
    assert not all(said)
