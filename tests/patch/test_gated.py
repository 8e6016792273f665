"""The gated entry: memories kept to the bit, scores of each row's own prompt, routing that asks who may before who is
first."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from retcon.errors import PatchError
from retcon.patch import ForwardRecord, Gated, LowRank, Patch, Step, combine, describe_base
from retcon.patch.base import projection
from retcon.patch.gated import ACTIVATIONS, Memory, packed, routed, row_scores, unpacked

Make = Callable[..., Patch]
Logits = Callable[[nn.Module], Tensor]
D_IN, D_OUT = 6, 4
SIZE = (D_OUT, D_IN)
DOWN = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_proj"}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def memory(seed: int = 0, *, size: tuple[int, int] = SIZE, threshold: float = 0.0, **more: Any) -> Memory:
    """A random memory on half of the entries."""
    mask = draw(*size, seed=seed + 50) > 0
    named: dict[str, Any] = {"names": (f"edit-{seed}",), "role": "shard"} | more
    return Memory(mask, draw(*size, seed=seed) * mask, threshold, named["names"], named["role"])


def gated(*memories: Memory, **settings: Any) -> Gated:
    return Gated.made(memories or (memory(),), SIZE, **settings)


def record(mask: Tensor, last: list[int], *, past: int = 0, held: dict[str, Tensor] | None = None) -> ForwardRecord:
    return ForwardRecord(mask.bool(), torch.tensor(last), past, {} if held is None else held)


def whole(x: Tensor) -> ForwardRecord:
    """Rows without padding, all of them prompt."""
    return record(torch.ones(x.shape[:2]), [x.shape[1] - 1] * len(x))


# --------------------------------------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("size", [(4, 6), (8, 8), (1, 63), (1, 65), (7, 31)])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_mask_comes_back_from_its_bits(size: tuple[int, int], share: float) -> None:
    mask = torch.rand(size, generator=torch.Generator().manual_seed(1)) < share
    bits = packed(mask)
    assert bits.shape == (-(-size[0] * size[1] // 64),)
    assert torch.equal(unpacked(bits, size), mask)


def test_memories_come_back_bit_for_bit() -> None:
    parts = [memory(0, threshold=1.5), memory(1, names=("a", "b"), role="merged"), memory(2, role="live")]
    entry = gated(*parts)
    assert (entry.shape, entry.rank, entry.roles) == (SIZE, 3, ("shard", "merged", "live"))
    for number, part in enumerate(parts):
        found = entry.memory(number)
        assert torch.equal(found.delta, part.delta)
        assert torch.equal(found.mask, part.mask)
        assert found[2:] == part[2:]


def test_settings_and_tensors_are_all_arguments() -> None:
    entry = gated()
    assert {part.name for part in fields(Gated) if part.init} == entry.tensors().keys() | entry.settings().keys()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"thresholds": torch.ones(2)}, "do not fit"),
        ({"roles": ("other",)}, "do not fit"),
        ({"size": (40, 60)}, "do not fit"),
        ({"score": "cosine"}, "knows no 'cosine'"),
        ({"activation": "mish3"}, "knows no 'mish3'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changed: dict[str, Any], said: str) -> None:
    entry = gated()
    with pytest.raises(PatchError, match=said):
        Gated(**{**entry.tensors(), **entry.settings(), **changed})


def test_bits_that_do_not_count_their_values_are_refused() -> None:
    entry = gated()
    with pytest.raises(PatchError, match="number of entries"):
        Gated(**{**entry.tensors(), **entry.settings(), "bits": torch.zeros_like(entry.bits)}).memory(0)


def test_no_memory_at_all_routes_nowhere() -> None:
    entry = Gated.made((), SIZE)
    x, y = draw(2, 3, D_IN), draw(2, 3, D_OUT)
    assert entry.rank == 0
    assert entry.apply(x, y, whole(x)) is y


# --------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("activation", ["silu", "relu", "gelu_new"])
def test_the_score_is_that_of_the_side_weight_with_the_modules_bias(kind: str, activation: str) -> None:
    """Defect W5: the side path dropped the bias, and took a Conv1D for a Linear."""
    module: Any = nn.Linear(D_IN, D_OUT) if kind == "linear" else Conv1D(D_OUT, D_IN)
    module.bias.data = draw(D_OUT, seed=3)
    part = memory(1)
    x = draw(2, 3, D_IN, seed=4)
    with torch.no_grad():
        y = module(x)
        weight = module.weight if kind == "linear" else module.weight.T
        side = x @ (weight + part.delta).T + module.bias
    act = ACTIVATIONS[activation]
    wanted = (act(side) - act(y)).norm(dim=-1).mean(1)
    entry = gated(part, activation=activation)
    torch.testing.assert_close(entry.scores(x, y, torch.ones(2, 3).bool())[:, 0], wanted)
    torch.testing.assert_close(entry.apply(x, y, whole(x)), side)


def test_the_linear_score_is_the_size_of_what_is_added() -> None:
    part, x, y = memory(1), draw(2, 3, D_IN), draw(2, 3, D_OUT)
    found = gated(part, score="linear").scores(x, y, torch.ones(2, 3).bool())[:, 0]
    torch.testing.assert_close(found, (x @ part.delta.T).norm(dim=-1).mean(1))


def test_a_memory_that_is_the_module_itself_scores_zero_and_hands_on_the_very_output() -> None:
    """Defect W5, and the oracle of a fresh patch: all rows go to main, bit for bit."""
    mask = torch.ones(SIZE).bool()
    entry = gated(Memory(mask, torch.zeros(SIZE), 0.0, ("a",), "live"))
    x, y = draw(2, 3, D_IN), draw(2, 3, D_OUT)
    assert entry.scores(x, y, torch.ones(2, 3).bool()).tolist() == [[0.0], [0.0]]
    assert entry.apply(x, y, whole(x)) is y


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_score_does_not_see_padding(side: str) -> None:
    """Defect W4: the mean ran over padding too; 20 pads, of which some hold NaN as behind a mask."""
    entry, x, y = gated(), draw(1, 5, D_IN), draw(1, 5, D_OUT)
    alone = entry.scores(x, y, torch.ones(1, 5).bool())
    pads = (20, 0) if side == "left" else (0, 20)
    wide = [nn.functional.pad(states, (0, 0, *pads), value=float("nan")) for states in (x, y)]
    mask = nn.functional.pad(torch.ones(1, 5), pads).bool()
    assert torch.equal(entry.scores(wide[0], wide[1], mask), alone)


def test_the_score_is_one_mean_at_any_length() -> None:
    """Defect W4: beyond 100 tokens the largest one took the mean's place; `long_prompt="max"` still does that."""
    apart = torch.cat([torch.ones(100), torch.tensor([2.0])])
    owner = torch.zeros(101, dtype=torch.long)
    below, above = (float(row_scores(apart[:n], owner[:n], 1)) for n in (100, 101))
    assert above - below == pytest.approx(1 / 101, rel=1e-3)
    assert float(row_scores(apart[:100], owner[:100], 1, "max")) == 1.0
    assert float(row_scores(apart, owner, 1, "max")) == 2.0


def test_a_row_without_prompt_scores_zero() -> None:
    assert row_scores(torch.ones(3), torch.tensor([0, 0, 2]), 4).tolist() == [1.0, 0.0, 1.0, 0.0]


# -------------------------------------------------------------------------------------------------------- routing


def test_a_higher_score_that_falls_short_of_its_threshold_stands_in_nobodys_way() -> None:
    """Defect W6: live scores 6 and needs 10, a shard scores 5 and needs 4: the shard."""
    assert routed(torch.tensor([[5.0, 6.0]]), torch.tensor([4.0, 10.0]), 1.0).tolist() == [0]
    assert routed(torch.tensor([[6.0, 5.0]]), torch.tensor([10.0, 4.0]), 1.0).tolist() == [1]


def test_of_the_eligible_the_largest_score_or_the_largest_ratio_wins() -> None:
    scores, thresholds = torch.tensor([[6.0, 5.0], [1.0, 1.0], [0.0, 9.0]]), torch.tensor([4.0, 2.0])
    assert routed(scores, thresholds, 1.0).tolist() == [0, -1, 1]
    assert routed(scores, thresholds, 1.0, "ratio").tolist() == [1, -1, 1]


def test_the_ratio_lowers_the_threshold_and_equality_is_not_enough() -> None:
    scores, thresholds = torch.tensor([[4.5], [4.4], [4.6]]), torch.tensor([5.0])
    assert routed(scores, thresholds, 1.0).tolist() == [-1, -1, -1]
    assert routed(scores, thresholds, 0.9).tolist() == [-1, -1, 0]


def test_each_row_takes_its_own_memory_as_it_would_alone() -> None:
    """Defect W2: one decision for a batch, or an error where shards were stored."""
    one, other = memory(0), memory(1)
    x, y = draw(3, 4, D_IN, seed=7), draw(3, 4, D_OUT, seed=8)
    prompt = torch.ones(3, 4).bool()
    scores = gated(one, other).scores(x, y, prompt)
    first, second = scores[0].tolist(), scores[1].tolist()
    x[2] = 0.01 * x[2]  # an unrelated row, which moves next to nothing
    limits = (0.9 * first[0], 0.9 * second[1])
    entry = gated(one._replace(threshold=limits[0]), other._replace(threshold=limits[1]), ratio=1.0, order="ratio")
    together = entry.apply(x, y, whole(x))
    chosen = entry.choose(x, y, prompt).tolist()
    assert chosen[2] == -1
    assert set(chosen[:2]) <= {0, 1}
    for row, number in enumerate(chosen):
        alone = entry.apply(x[row : row + 1], y[row : row + 1], whole(x[row : row + 1]))
        torch.testing.assert_close(together[row], alone[0])
        wanted = y[row] if number < 0 else y[row] + x[row] @ (one, other)[number].delta.T
        torch.testing.assert_close(together[row], wanted)
    assert torch.equal(together[2], y[2])


def test_the_prompt_decides_and_every_token_of_the_row_passes() -> None:
    entry, x, y = gated(), draw(2, 6, D_IN), draw(2, 6, D_OUT)
    x[0, 4:] = 1e3  # an answer that would excite any memory
    x[0, :4] *= 1e-3
    held = gated(memory(0, threshold=0.05))
    mask = torch.ones(2, 6)
    assert torch.equal(held.apply(x, y, record(mask, [3, 3]))[0], y[0])
    found = entry.apply(x, y, record(mask, [3, 3]))
    torch.testing.assert_close(found[1], y[1] + x[1] @ entry.dense(0).T)


def test_while_decoding_the_decision_holds() -> None:
    """Defect W3: it was renewed for every generated token."""
    entry, held = gated(memory(0, threshold=0.05)), dict[str, Tensor]()
    x, y = draw(2, 5, D_IN), draw(2, 5, D_OUT)
    x[1] *= 1e-3
    entry.apply(x, y, record(torch.ones(2, 5), [4, 4], held=held))
    x, y = draw(2, 1, D_IN, seed=7), draw(2, 1, D_OUT, seed=8)
    x[0] *= 1e-6  # tokens that by themselves would be decided the other way
    x[1] *= 1e3
    found = entry.apply(x, y, record(torch.ones(2, 1), [-1, -1], past=5, held=held))
    torch.testing.assert_close(found[0], y[0] + x[0] @ entry.dense(0).T)
    assert torch.equal(found[1], y[1])


def test_a_forward_that_nobody_tells_of_is_refused() -> None:
    with pytest.raises(PatchError, match="whole model"):
        gated().apply(draw(2, 5, D_IN), draw(2, 5, D_OUT))


def test_flattened_rows_are_followed_and_other_layouts_refused() -> None:
    """OPT runs its MLP on (rows * width, d)."""
    entry, x, y = gated(), draw(2, 5, D_IN), draw(2, 5, D_OUT)
    flat = entry.apply(x.flatten(0, 1), y.flatten(0, 1), whole(x))
    assert torch.equal(flat.view(2, 5, D_OUT), entry.apply(x, y, whole(x)))
    with pytest.raises(PatchError, match="2 rows and 5 columns"):
        entry.apply(draw(5, 2, D_IN), draw(5, 2, D_OUT), whole(x))


def test_half_precision_is_scored_in_fp32_and_autocast_does_not_round_it() -> None:
    entry, x, y = gated(), draw(2, 5, D_IN), draw(2, 5, D_OUT)
    mask = torch.ones(2, 5).bool()
    assert entry.apply(x.bfloat16(), y.bfloat16(), whole(x)).dtype == torch.bfloat16
    plain = entry.scores(x, y, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(entry.scores(x, y, mask), plain)


def test_strength_goes_part_of_the_way_and_routes_the_same() -> None:
    entry, x, y = gated(memory(0, threshold=0.05)), draw(2, 5, D_IN), draw(2, 5, D_OUT)
    full, half = (part.apply(x, y, whole(x)) for part in (entry, entry.scaled(0.5)))
    torch.testing.assert_close(half, (full + y) / 2)
    assert not torch.equal(full, y)


def test_gradients_flow_through_both_kinds_of_rows() -> None:
    entry, x, y = gated(memory(0, threshold=0.05)), draw(2, 5, D_IN), draw(2, 5, D_OUT)
    x[1] *= 1e-3
    x.requires_grad_()
    y.requires_grad_()
    entry.apply(x, y, whole(x)).sum().backward()
    assert y.grad is not None
    assert x.grad is not None
    assert bool((y.grad == 1).all())
    assert x.grad[0].any()
    assert not x.grad[1].any()


# ---------------------------------------------------------------------------------------- deletion, chains, files


def test_an_edit_among_others_cannot_be_deleted_and_a_whole_memory_can() -> None:
    entry = gated(memory(0, names=("a", "b")), memory(1, names=("c",)))
    with pytest.raises(PatchError, match="'a' shares its memory with 1 others.*cannot be told apart"):
        entry.without(["a"])
    with pytest.raises(PatchError, match="no edit 'd'"):
        entry.without(["a", "b", "d"])
    left = entry.without(["a", "b"])
    assert left.names == (("c",),)
    assert torch.equal(left.dense(0), memory(1).delta)
    assert entry.without(["a", "b", "c"]).rank == 0


def test_it_is_no_change_of_a_weight() -> None:
    entry = gated()
    assert not entry.folds
    with pytest.raises(PatchError, match="looks at the prompt"):
        entry.delta()
    low = LowRank(draw(D_OUT, 1), draw(D_IN, 1))
    both = combine(low, entry)
    assert not both.folds
    x, y = draw(2, 5, D_IN), draw(2, 5, D_OUT)
    torch.testing.assert_close(both.apply(x, y, whole(x)), entry.apply(x, low.apply(x, y), whole(x)))


def patch_on(model: PreTrainedModel, *, share: float = 0.2) -> Patch:
    """Two memories on a projection, which every prompt enters."""
    path = DOWN[model.config.model_type]
    size = projection(model, path)[1]
    parts = []
    for seed in range(2):
        mask = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share
        parts.append(Memory(mask, 0.1 * draw(*size, seed=seed) * mask, 1e-3, (f"ü{seed}",), "shard"))
    entry = Gated.made(parts, size, making={"templates": ["I { }. "], "scale": 0.1, "opened": 2})
    step = Step(method="wise", config={}, edits=({"id": "ü0"}, {"id": "ü1"}))
    return Patch({path: entry}, describe_base(model, [path], name="tiny"), (step,))


@pytest.mark.parametrize("same_module", [False, True])
def test_a_saved_patch_is_read_back_bit_for_bit(
    model: PreTrainedModel, make: Make, logits: Logits, tmp_path: Path, same_module: bool
) -> None:
    made = make(model, 1, modules=slice(1, 2) if same_module else slice(0, 1)) + patch_on(model)
    loaded = Patch.load(made.save(tmp_path / "patch"))
    assert loaded.id == made.id
    for path, entry in made.entries.items():
        found = loaded.entries[path]
        assert found.settings() == entry.settings()
        assert found.tensors().keys() == entry.tensors().keys()
        assert all(torch.equal(tensor, found.tensors()[name]) for name, tensor in entry.tensors().items())
    plain = logits(model)
    with made.on(model):
        wanted = logits(model)
    with loaded.on(model):
        assert torch.equal(logits(model), wanted)
    assert not torch.equal(wanted, plain)
    assert torch.equal(logits(model), plain)


def test_a_memory_at_a_fifth_of_the_entries_is_smaller_than_the_weight(model: PreTrainedModel, tmp_path: Path) -> None:
    """Defect W15: three full copies of the weight, pickled. Even two memories stay below one dense fp32 matrix."""
    made = patch_on(model)
    d_out, d_in = made.entries[DOWN[model.config.model_type]].shape
    assert made.size_bytes < 0.5 * 4 * d_out * d_in
    folder = made.save(tmp_path / "patch")
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "patch.safetensors"]
    assert (folder / "patch.safetensors").stat().st_size < 4 * d_out * d_in


def test_a_forward_changes_nothing_of_the_patch(model: PreTrainedModel, logits: Logits) -> None:
    """Defect W11: calling the model appended and merged memories."""
    made = patch_on(model)
    entry = made.entries[DOWN[model.config.model_type]]
    before = {name: tensor.clone() for name, tensor in entry.tensors().items()}, entry.settings()
    with made.on(model):
        logits(model)
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in entry.tensors().items())
    assert entry.settings() == before[1]
    assert Patch(made.entries, made.base, made.history).id == made.id


def test_merging_and_exporting_are_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    made = patch_on(model)
    for deed in (lambda: made.merge(model), lambda: made.to_lora(tmp_path / "lora", rank=2)):
        with pytest.raises(PatchError, match="holds a gated_memory, which looks at the prompt"):
            deed()
    assert not list(tmp_path.iterdir())
