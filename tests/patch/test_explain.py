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
from retcon.patch.explain import sentence
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


# ------------------------------------------------------------------------------------------------------ in words


def memory(**more: Any) -> dict[str, Any]:
    return {"edits": ["a"], "taken": False} | more


@pytest.mark.parametrize(
    ("kind", "memories", "wanted"),
    [
        (
            "codebook",
            [memory(distance=3.0, radius=1.0), memory(edits=["b"], distance=0.25, radius=0.5, taken=True)],
            "the key of edit b answers, the nearest of 2 keys, at a distance of 0.25, within its radius of 0.5.",
        ),
        (
            "codebook",
            [memory(distance=3.0, radius=1.0)],
            'no key answers; the nearest of 1 key, that of "Sea", lies at a distance of 3, outside its radius of 1.',
        ),
        (
            "gated_memory",
            [memory(score=6.0, threshold=10.0), memory(edits=["b", "a"], score=5.0, threshold=4.0, taken=True)],
            'memory 2 of 2 answers, which holds edit b, "Sea": its gate stands at 5, and 4 opens it.',
        ),
        (
            "gated_memory",
            [memory(score=1.0, threshold=2.0), memory(edits=["b"], score=1.5, threshold=9.0)],
            'no memory answers; the nearest to it, memory 1 of 2, holds "Sea": its gate stands at 1, and 2 opens it.',
        ),
        (
            "context",
            [
                memory(cosine=0.9, threshold=0.4, confirmed_by=1.5, needed=0.5, taken=True),
                memory(cosine=0.1, threshold=0.4),
            ],
            '1 of 2 facts before the prompt: "Sea", cosine 0.9 (0.4 is needed), yes over no 1.5 (0.5 is needed).',
        ),
        (
            "context",
            [memory(cosine=0.2, threshold=-2.0)],
            'no fact goes before the prompt; the most similar of 1 is "Sea", cosine 0.2.',
        ),
    ],
)
def test_a_sentence_says_who_answers_and_how_near_it_was(
    kind: str, memories: list[dict[str, Any]], wanted: str
) -> None:
    assert sentence({"kind": kind, "decision": "", "memories": memories}, {"a": "Sea"}) == wanted


def test_many_edits_are_named_by_the_first_and_weights_by_what_they_are() -> None:
    held = memory(edits=list("abcde"), score=3.0, threshold=2.0, taken=True)
    said = sentence({"kind": "gated_memory", "decision": "", "memories": [held]})
    assert "holds edit a, edit b, edit c and 2 more:" in said
    assert sentence({"kind": "low_rank", "decision": "it is a change of the weight"}) == "it is a change of the weight."


@pytest.mark.parametrize("name", ["grace", "wise", "ike", "scr"])
def test_real_memories_have_their_sentence(lm: LM, name: str) -> None:
    edits = tiny_edits(2)
    patch = quick(name, **OPTIONS.get(name, {})).edit(lm, edits)
    (told,) = patch.explain(lm.model, ids(lm, edits[0]))
    said = sentence(told, {"tiny-0": edits[0].text})
    assert edits[0].text in said
    assert told["decision"] not in said
