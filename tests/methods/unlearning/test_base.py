"""What methods share that unlearn: what they train and on which model, what they refuse, what their patches tell."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from retcon.errors import RequestError, RetconError, RetconWarning
from retcon.lm import LM
from retcon.methods import METHODS, Method
from retcon.methods.training import descending
from retcon.methods.training_rows import logits_at
from retcon.methods.unlearning.base import linear_paths
from retcon.methods.unlearning.objectives import OBJECTIVES
from retcon.patch import Dense, LowRank
from retcon.requests import Edit
from retcon.testing import tiny_edits
from retcon.testing.checks import difference
from retcon.testing.contract import RETAIN, quick

TinyLM = Callable[..., LM]
NAMES = list(OBJECTIVES)
NEED_TEXTS = ["graddiff", "kl", "idk", "dpo", "npo", "simnpo", "rmu", "wga", "satimp"]
NEED_NO_TEXTS = ["ga", "undial", "ceu"]


def made(name: str, **options: Any) -> Any:
    return quick(name, **options)


# ------------------------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("gpt2", ["c_attn", "c_proj", "c_fc", "c_proj"]),
        ("bloom", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
        ("opt", ["k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"]),
    ],
)
def test_all_linear_layers_of_attention_and_mlp_are_trained(family: str, names: list[str], tiny_lm: TinyLM) -> None:
    lm = tiny_lm(family)
    paths = linear_paths(lm, range(lm.arch.n_layers))
    assert [path.rpartition(".")[2] for path in paths] == names * lm.arch.n_layers
    assert linear_paths(lm, [2]) == paths[2 * len(names) : 3 * len(names)]


def test_by_default_factors_of_rank_8_at_twice_their_product(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    found = made("npo", epochs=2).edit(lm, tiny_edits(2), retain=RETAIN)
    assert list(found.entries) == linear_paths(lm, range(4))
    assert all(isinstance(entry, LowRank) and entry.rank == 8 for entry in found.entries.values())
    assert made("npo").config.alpha / made("npo").config.rank == 2
    assert all(entry.delta().any() for entry in found.entries.values())


def test_full_trains_dense_changes_of_the_chosen_layers(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("gpt2")
    found = made("ga", params="full", layers=(1, 3), epochs=1).edit(lm, tiny_edits(2))
    assert list(found.entries) == linear_paths(lm, [1, 3])
    assert all(isinstance(entry, Dense) and entry.delta().any() for entry in found.entries.values())


@pytest.mark.parametrize("params", ["lora", "full"])
def test_off_the_change_is_the_model_to_the_bit_and_the_bare_model_is_the_reference(
    params: str, tiny_lm: TinyLM
) -> None:
    """No second copy: the reference is the same model with the entries off."""
    lm = tiny_lm("llama")
    rows, at = [[5, 9, 7, 6], [8, 6]], [(0, 1), (0, 3), (1, 1)]
    change = made("npo", params=params).change(lm)
    with descending(lm, "float32"), torch.no_grad():
        clean = logits_at(lm, rows, at, {})
        assert torch.equal(logits_at(lm, rows, at, change.entries()), clean)
        for leaf in change.leaves:
            leaf += 0.05
        assert not torch.equal(logits_at(lm, rows, at, change.entries()), clean)
        assert torch.equal(logits_at(lm, rows, at, {}), clean)


# ------------------------------------------------------------------------------------------------- what comes of it


def test_what_is_said_of_facts_is_in_the_callers_order(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(5)
    facts = made("dpo", epochs=1).edit(lm, edits, retain=RETAIN).info["facts"]
    for edit, fact in zip(edits, facts, strict=True):
        (single,) = made("dpo", epochs=1).edit(lm, [edit], retain=RETAIN).info["facts"]
        assert single["before"] == pytest.approx(fact["before"], abs=2e-5)
        assert single["refusal_before"] == pytest.approx(fact["refusal_before"], abs=2e-5)


def test_with_a_state_that_is_the_reference(tiny_lm: TinyLM) -> None:
    """On top of a patch NPO begins at (2/beta) ln 2 again, not where the bare model would have it."""
    lm, edits = tiny_lm("llama"), tiny_edits(4)
    first = made("npo", epochs=10).edit(lm, edits[:2], retain=RETAIN)
    second = made("npo", epochs=1, retain_weight=0.0).edit(lm, edits[:2], state=first)
    start = second.info["unlearning"]["readings"][1]["loss"]
    assert start == pytest.approx(13.8629, abs=1e-3)
    assert first.id in second.contains
    assert second.info["facts"][0]["before"] == pytest.approx(first.info["facts"][0]["probability"], abs=2e-5)


def test_pairs_to_keep_are_kept_by_their_answers(tiny_lm: TinyLM) -> None:
    lm, pairs = tiny_lm("llama"), [("Who left the harbour?", "The boats"), ("When did they meet?", "On Monday")]
    found = made("npo", epochs=4).edit(lm, tiny_edits(2), retain=pairs)
    counted = found.info["unlearning"]["tokens"]["retain"]
    whole = made("npo", epochs=4, retain_prompts=True).edit(lm, tiny_edits(2), retain=pairs)
    assert whole.info["unlearning"]["tokens"]["retain"] > counted
    assert difference(found, whole) > 1e-3


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_without_an_answer_is_refused_where_it_is_needed(name: str, tiny_lm: TinyLM) -> None:
    lm, edit = tiny_lm("llama"), Edit(prompt="The capital of the country is", target="not known to me")
    if name == "idk":
        assert made(name, epochs=1).edit(lm, [edit], retain=RETAIN).entries
        return
    with pytest.raises(RequestError, match="give it as old"):
        made(name).edit(lm, [edit], retain=RETAIN)


@pytest.mark.parametrize("name", NAMES)
def test_texts_to_keep_are_asked_for_where_they_have_a_weight(name: str, tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    if name in NEED_TEXTS:
        with pytest.raises(RetconError, match="give some as retain, or retain_weight=0"):
            made(name).edit(lm, tiny_edits(1))
    assert made(name, retain_weight=0.0, epochs=1).edit(lm, tiny_edits(1)).entries
    assert set(NEED_TEXTS) | set(NEED_NO_TEXTS) == set(NAMES)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("npo", {"epochs": 0}, "give at least 1"),
        ("npo", {"batch": 0}, "give at least 1"),
        ("npo", {"eval_every": 0}, "give at least 1"),
        ("npo", {"lr": 0.0}, "npo has a lr of 0; give one above zero"),
        ("npo", {"lr": float("nan")}, "above zero"),
        ("npo", {"clip": 0.0}, "npo has a clip of 0"),
        ("simnpo", {"beta": -1.0}, "simnpo has a beta of -1"),
        ("npo", {"forget_weight": 0.0, "retain_weight": 0.0}, "not both zero"),
        ("npo", {"forget_weight": -1.0}, "not below zero"),
        ("npo", {"retain_loss": "embed"}, "retain_loss is nll or kl"),
        ("npo", {"rank": 0}, "at least rank 1"),
        ("npo", {"layers": (9,)}, "name some of 0 to 3"),
    ],
)
def test_senseless_options_are_refused(name: str, options: dict[str, Any], reason: str, tiny_lm: TinyLM) -> None:
    with pytest.raises(RetconError, match=reason):
        made(name, **options).edit(tiny_lm("llama"), tiny_edits(1), retain=RETAIN)


def test_senseless_requests_are_refused(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    with pytest.raises(RetconError, match="there is no edit"):
        made("ga").edit(lm, [])
    with pytest.raises(RetconError, match="give a list of one"):
        made("ga").edit(lm, tiny_edits(1), retain="a text")
    with pytest.raises(RequestError, match="fewer than two tokens"):
        made("ga").edit(lm, tiny_edits(1), retain=[""])


def test_a_patch_that_was_never_good_changes_nothing_and_says_so(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    with pytest.warns(RetconWarning, match="ga never forgot without harm .* give a smaller lr than 0.5"):
        found = made("ga", lr=0.5, tolerance=0.0).edit(lm, tiny_edits(2), retain=RETAIN)
    ids = torch.tensor([[5, 9, 7, 6]])
    with lm.inference():
        plain = lm.model(input_ids=ids).logits
        with found.on(lm.model):
            assert torch.equal(lm.model(input_ids=ids).logits, plain)


def test_they_are_methods_like_any_other() -> None:
    rule: Method = METHODS["npo"]()
    assert rule.config == rule.Config()
    assert not rule.order_matters
