"""What a patch says of its memories: the score or distance of every one, and the decision."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from retcon import tokens
from retcon.errors import PatchError
from retcon.lm import LM
from retcon.patch import Patch
from retcon.requests import Edit
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.contract import quick

OPTIONS: dict[str, dict[str, Any]] = {"wise": {"steps": 20, "lr": 0.3}, "memit": {"layers": (1,)}}


@pytest.fixture
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


def ids(lm: LM, edit: Edit) -> list[int]:
    return tokens.encode(lm, edit.text)


@pytest.mark.parametrize("name", ["grace", "wise", "ike", "scr"])
def test_every_memory_is_told_and_the_one_that_is_taken(lm: LM, name: str) -> None:
    edits = tiny_edits(3)
    patch = quick(name, **OPTIONS.get(name, {})).edit(lm, edits)
    (told,) = patch.explain(lm.model, ids(lm, edits[1]))
    json.dumps(told, allow_nan=False)
    assert told["kind"] == next(iter(patch.entries.values())).kind
    assert {edit for memory in told["memories"] for edit in memory["edits"]} == {"tiny-0", "tiny-1", "tiny-2"}
    taken = [memory for memory in told["memories"] if memory["taken"]]
    assert "tiny-1" in [edit for memory in taken for edit in memory["edits"]]
    assert lm.model._forward_hooks == {}


def test_the_figures_are_those_of_the_decision(lm: LM) -> None:
    edits = tiny_edits(3)
    book = quick("grace").edit(lm, edits[:2])
    (far,) = book.explain(lm.model, ids(lm, replace(edits[2], id="other")))
    assert not any(memory["taken"] for memory in far["memories"])
    assert all(memory["distance"] > memory["radius"] for memory in far["memories"])
    (near,) = book.explain(lm.model, ids(lm, edits[0]))
    assert near["memories"][0]["distance"] < 1e-3
    (gated,) = quick("ike").edit(lm, edits).explain(lm.model, ids(lm, edits[0]))
    assert gated["memories"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert all((memory["cosine"] > memory["threshold"]) >= memory["taken"] for memory in gated["memories"])


def test_a_sum_tells_of_each_part_and_of_weights_in_one_sentence(lm: LM) -> None:
    edits = tiny_edits(4)
    path = lm.arch.mlp_out[1]
    weights = quick("memit", layers=(1,)).edit(lm, edits[:1])
    both: Patch = weights + quick("grace", layer=1).edit(lm, edits[1:2]) + quick("scr").edit(lm, edits[2:])
    told = both.explain(lm.model, ids(lm, edits[2]))
    assert [(part["path"], part["kind"]) for part in told] == [(path, "low_rank"), (path, "codebook"), ("", "context")]
    assert "change of the weight" in told[0]["decision"]
    assert "memories" not in told[0]
    assert told[2]["memories"][0]["taken"]
    alone = weights.explain(lm.model, ids(lm, edits[0]))
    assert [part["kind"] for part in alone] == ["low_rank"]


def test_a_patch_that_is_on_already_is_refused_and_stays_on(lm: LM) -> None:
    patch = quick("ike").edit(lm, tiny_edits(2))
    with patch.on(lm.model), torch.no_grad():
        with pytest.raises(PatchError, match="on this model"):
            patch.explain(lm.model, ids(lm, tiny_edits(1)[0]))
        assert lm.model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 512)
