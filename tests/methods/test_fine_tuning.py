"""Fine-tuning editors: what they train and what they leave, and the defects that others are known for."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from retcon import tokens
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods import FTL, FTM, METHODS, FTLConfig, FTMConfig, LocFTBF, LocFTBFConfig
from retcon.methods.fine_tuning import FineTuning, default_layer
from retcon.patch import Dense, Patch
from retcon.requests import Edit
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.checks import difference

TinyLM = Callable[..., LM]
ONE_TOKEN = Edit(prompt="The", target="city")
ALL = ["ft-l", "ft-m", "locft-bf"]
QUICK: dict[str, Any] = {"layers": (2,), "lr": 1e-3, "steps": 4}


def made(name: str, **options: Any) -> Any:
    kind = METHODS[name]
    return kind(kind.Config(**{**QUICK, **options}))


def sharp(family: str) -> LM:
    """A tiny model with a wide range of logits: behind its last norm that of others is too narrow for a loss near 0."""
    model: Any = tiny_model(family)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
    return LM.wrap(model, tiny_tokenizer())


# ------------------------------------------------------------------------------------------- what they reach


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize("name", ALL)
def test_one_edit_reaches_a_loss_below_a_hundredth(name: str, family: str) -> None:
    """FT-L for a target of one token and without its clamp: what it asks of longer ones cannot be met."""
    lm = sharp(family)
    edit = Edit(prompt=tiny_edits(1)[0].text, target="city") if name == "ft-l" else tiny_edits(4)[3]
    patch = made(name, lr=2e-3, steps=200, clamp=None).edit(lm, [edit])
    (fact,) = patch.info["facts"]
    assert fact["loss"] < 0.01
    assert fact["evaluations"] < 200
    assert fact["probability"] > 0.98
    text = lm.render(edit.text)
    prompt, target = tokens.encode(lm, text), tokens.target_ids(lm, text, edit.target)
    with lm.inference(), patch.on(lm.model):
        logits = lm.model(input_ids=torch.tensor([[*prompt, *target]])).logits[0]
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == target
    if name == "locft-bf":
        assert int(logits[-1].argmax()) == lm.tokenizer.eos_token_id


def test_depth_forgets_what_it_had_reached_and_breadth_does_not() -> None:
    """Reached: the loss when a fact was last trained. Held: its probability when all were."""
    lm, edits = sharp("llama"), tiny_edits(8)
    reached, held = {}, {}
    for schedule in ("breadth", "depth"):
        facts = made("locft-bf", schedule=schedule, eos=False, lr=2e-3, steps=100).edit(lm, edits).info["facts"]
        reached[schedule] = sum(math.exp(-fact["loss"]) for fact in facts) / len(facts)
        held[schedule] = sum(fact["probability"] for fact in facts) / len(facts)
    assert reached["depth"] > 0.9
    assert held["depth"] < reached["depth"] - 0.03
    assert held["breadth"] > reached["breadth"] - 0.01


def test_for_targets_of_one_token_ft_l_is_ft_m(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("gpt2"), [ONE_TOKEN, Edit(prompt="In the", target="city")]
    options = {**QUICK, "clamp": 1e-3}
    one = FTL(FTLConfig(**options)).edit(lm, edits)
    other = FTM(FTMConfig(**options)).edit(lm, edits)
    assert one.entries.keys() == other.entries.keys()
    for path, entry in one.entries.items():
        assert torch.equal(entry.delta(), other.entries[path].delta())
        assert entry.delta().any()


def test_ft_l_asks_one_position_for_all_tokens(tiny_lm: TinyLM) -> None:
    lm, edit = tiny_lm("llama"), tiny_edits(4)[3]
    text = lm.render(edit.text)
    prompt, target = tokens.encode(lm, text), tokens.target_ids(lm, text, edit.target)
    with lm.inference():
        logits = lm.model(input_ids=torch.tensor([prompt])).logits[0, -1]
    wanted = float(F.cross_entropy(logits.expand(len(target), -1), torch.tensor(target)))
    (fact,) = made("ft-l", steps=1).edit(lm, [edit]).info["facts"]
    assert fact["loss"] == pytest.approx(wanted, abs=2e-5)


def test_locft_bf_in_depth_is_ft_m(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    control = LocFTBF(LocFTBFConfig(schedule="depth", eos=False, **QUICK))
    assert control.order_matters
    assert not LocFTBF().order_matters
    assert difference(control.edit(lm, edits), FTM(FTMConfig(**QUICK)).edit(lm, edits)) == 0


# ------------------------------------------------------------------------------------------- known defects


@pytest.mark.parametrize("name", ALL)
def test_f1_left_and_right_padding_tokenizers_give_the_same_patch(name: str) -> None:
    """Where a target begins is told by lengths, not by the sum of a mask."""
    edits, found = [*tiny_edits(3), ONE_TOKEN], []
    for side in ("left", "right"):
        tokenizer = tiny_tokenizer()
        tokenizer.padding_side = side
        found.append(made(name).edit(LM.wrap(tiny_model("llama"), tokenizer), edits))
    assert found[0].id == found[1].id


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
@pytest.mark.parametrize("name", ALL)
def test_f2_biases_are_bit_equal(name: str, family: str) -> None:
    model: Any = tiny_model(family)
    lm = LM.wrap(model, tiny_tokenizer())
    patch = made(name).edit(lm, tiny_edits(2))
    (path,) = patch.entries
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    assert f"{path}.bias" in before
    patch.merge(model)
    differing = [key for key, weight in model.named_parameters() if not torch.equal(weight, before[key])]
    assert differing == [f"{path}.weight"]


def test_f3_a_short_target_is_trained_alike_alone_and_beside_a_long_one(tiny_lm: TinyLM) -> None:
    """No id of padding stands for a mask: a target that holds the id of padding is learned as any other."""
    lm = tiny_lm("llama", torch.float64)
    long = replace(tiny_edits(4)[3], target="the water polo of the city of Rome")
    alone = made("locft-bf", steps=1, eos=False).edit(lm, [ONE_TOKEN])
    other = made("locft-bf", steps=1, eos=False).edit(lm, [long])
    both = made("locft-bf", steps=1, batch=2, eos=False).edit(lm, [ONE_TOKEN, long])
    told = [patch.info["facts"] for patch in (alone, other, both)]
    assert told[2][0]["loss"] == pytest.approx(told[0][0]["loss"], abs=2e-5)
    assert told[2][1]["loss"] == pytest.approx(told[1][0]["loss"], abs=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_f4_what_every_shipped_name_of_an_objective_asks_for_runs(name: str, tiny_lm: TinyLM) -> None:
    method = METHODS[name]()
    assert isinstance(method, FineTuning)
    assert method.place == ("last_position" if name == "ft-l" else "masked")
    assert method.config.schedule == ("breadth" if name == "locft-bf" else "depth")
    assert made(name).edit(tiny_lm("llama"), tiny_edits(1)).entries


@pytest.mark.parametrize("name", ALL)
def test_f5_what_wants_gradients_does_so_as_before(name: str) -> None:
    model = tiny_model("llama")
    lm = LM.wrap(model, tiny_tokenizer())
    for number, weight in enumerate(model.parameters()):
        weight.requires_grad_(number % 2 == 0)
    before = [(weight.requires_grad, weight.grad) for weight in model.parameters()]
    made(name).edit(lm, tiny_edits(2), retain=["The city is large."])
    assert [(weight.requires_grad, weight.grad) for weight in model.parameters()] == before


# ------------------------------------------------------------------------------------------- the clamp


@pytest.mark.parametrize("clamp", [5e-4, 1e-3, 0.1 + 0.2])
@pytest.mark.parametrize("name", ALL)
def test_the_clamp_is_kept_exactly_and_reached(name: str, clamp: float, tiny_lm: TinyLM) -> None:
    """Also as doubles, where the nearest fp32 number may lie above the clamp."""
    patch = made(name, clamp=clamp, lr=clamp / 2).edit(tiny_lm("llama"), tiny_edits(2))
    (entry,) = patch.entries.values()
    largest = float(entry.delta().abs().max().double())
    assert clamp * (1 - 1e-6) < largest <= clamp


def test_ft_l_is_clamped_by_default_and_the_others_are_not() -> None:
    assert FTLConfig().clamp == 5e-4
    assert FTMConfig().clamp is None
    assert LocFTBFConfig().clamp is None


@pytest.mark.parametrize("clamp", [0.0, -1.0])
def test_a_clamp_without_room_is_refused(clamp: float, tiny_lm: TinyLM) -> None:
    with pytest.raises(RetconError, match="leaves no room"):
        made("ft-m", clamp=clamp).edit(tiny_lm("llama"), tiny_edits(1))


# ------------------------------------------------------------------------------------------- patches


@pytest.mark.parametrize(
    ("layers", "wanted", "breadth"), [(1, 0, 0), (4, 2, 3), (28, 19, 23), (30, 20, 25), (32, 22, 26)]
)
def test_the_default_layer_lies_at_a_share_of_the_depth(layers: int, wanted: int, breadth: int) -> None:
    lm = LM.wrap(tiny_model("llama", layers=layers), tiny_tokenizer())
    assert (default_layer(lm, 0.7), default_layer(lm, 0.85)) == (wanted, breadth)
    assert FTM().paths(lm) == FTL().paths(lm) == [lm.arch.mlp_out[wanted]]
    assert LocFTBF().paths(lm) == [lm.arch.mlp_out[breadth]]


def test_several_layers_are_trained_together_and_named_exactly() -> None:
    lm = LM.wrap(tiny_model("llama", layers=12), tiny_tokenizer())
    patch = made("locft-bf", layers=(1, 3)).edit(lm, tiny_edits(2))
    assert list(patch.entries) == [lm.arch.mlp_out[1], lm.arch.mlp_out[3]]  # and not 10 and 11
    assert all(isinstance(entry, Dense) and entry.delta().any() for entry in patch.entries.values())
    with pytest.raises(RetconError, match="name some of 0 to 11"):
        made("locft-bf", layers=(12,)).edit(lm, tiny_edits(1))


@pytest.mark.parametrize("name", ALL)
def test_equal_seeds_give_equal_bytes(name: str, tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    one, other = (made(name, batch=2, seed=3).edit(lm, edits, retain=["The city is large."]) for _ in range(2))
    assert one.id == other.id
    for path, entry in one.entries.items():
        assert torch.equal(entry.delta(), other.entries[path].delta())


@pytest.mark.parametrize("name", ALL)
def test_going_on_adds_to_the_state(name: str, tiny_lm: TinyLM) -> None:
    """What is trained on top of the state is what would be trained with it on the model."""
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    first = made(name).edit(lm, edits[:2])
    both = made(name).edit(lm, edits[2:], state=first)
    with first.on(lm.model):
        more = made(name).edit(lm, edits[2:])
    (path,) = first.entries
    assert first.id in both.contains
    assert [step.method for step in both.history] == [name, name]
    assert torch.equal(both.entries[path].delta(), first.entries[path].delta() + more.entries[path].delta())
    assert len(both.info["facts"]) == both.info["n"] == 1


def test_facts_need_no_subject(tiny_lm: TinyLM) -> None:
    lm, named = tiny_lm("llama"), tiny_edits(3)
    plain = [Edit(prompt=edit.text, target=edit.target) for edit in named]
    assert difference(made("locft-bf").edit(lm, named), made("locft-bf").edit(lm, plain)) == 0


def test_a_fact_tells_how_its_target_stands_when_all_are_trained(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    patch = made("ft-m").edit(lm, edits)
    for edit, fact in zip(edits, patch.info["facts"], strict=True):
        assert fact["probability"] == pytest.approx(probability(lm, patch, edit), abs=2e-5)
    assert patch.info["targets_cached"] == 0
    assert patch.info["seconds"].keys() == {"statistics", "targets", "solve"}


def probability(lm: LM, patch: Patch, edit: Edit) -> float:
    text = lm.render(edit.text)
    prompt, target = tokens.encode(lm, text), tokens.target_ids(lm, text, edit.target)
    with lm.inference(), patch.on(lm.model):
        logits = lm.model(input_ids=torch.tensor([[*prompt, *target]])).logits[0]
    return float((-F.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(target))).exp())


def test_no_edit_is_refused(tiny_lm: TinyLM) -> None:
    with pytest.raises(RetconError, match="there is no edit"):
        FTM().edit(tiny_lm("llama"), [])
