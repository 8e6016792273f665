"""The codebook entry: the nearest key by explicit differences, replaced where it says, kept bit for bit in files."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from retcon.errors import PatchError
from retcon.patch import Chain, Codebook, Dense, ForwardRecord, LowRank, Patch, Step, combine, describe_base
from retcon.patch.chain import compress
from retcon.patch.codebook import nearest
from retcon.patch.entries import svd

Make = Callable[..., Patch]
Logits = Callable[[nn.Module], Tensor]
Count = Callable[[nn.Module], int]
D_IN, D_OUT = 6, 4
DOWN = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_proj"}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codebook(n: int = 3, *, radius: float = 0.5, **settings: Any) -> Codebook:
    """Random keys, each with an edit and a label of another length."""
    keys = draw(n, D_IN)
    labels = [tuple(range(number + 1)) for number in range(n)]
    names = [f"edit-{number}" for number in range(n)]
    values = 10 + draw(n, D_OUT, seed=1)
    return Codebook.made(keys, values, [radius] * n, labels, keys.clone(), range(n), names, **settings)


def record(mask: Tensor, last: list[int], *, past: int = 0, held: dict[str, Tensor] | None = None) -> ForwardRecord:
    return ForwardRecord(mask.bool(), torch.tensor(last), past, {} if held is None else held)


# --------------------------------------------------------------------------------------------------- lookup


def brute(keys: Tensor, query: Tensor) -> tuple[int, float]:
    """The nearest key and its distance in fp64, the last of several."""
    gaps = (keys.double() - query.double()).norm(dim=1)
    return int((gaps == gaps.min()).nonzero()[-1]), float(gaps.min())


@pytest.mark.parametrize("n", [1, 5, 32, 33, 500])
def test_the_nearest_key_is_that_of_a_search_in_fp64(n: int) -> None:
    keys, queries = draw(n, 48), draw(20, 48, seed=1)
    index, distance = nearest(keys, keys.square().sum(1) / 2, queries)
    for place, query in enumerate(queries):
        wanted = brute(keys, query)
        assert int(index[place]) == wanted[0]
        assert float(distance[place]) == pytest.approx(wanted[1], rel=1e-5)


def test_small_distances_between_large_keys_survive() -> None:
    """Defect G11: by matrix products, 64 keys of dimension 4096 have distance 0.0 in place of 0.064."""
    keys = 3 * draw(64, 4096)
    index, distance = nearest(keys, keys.square().sum(1) / 2, keys + 1e-3)
    assert index.tolist() == list(range(64))
    torch.testing.assert_close(distance, torch.full((64,), 1e-3 * 64), rtol=1e-2, atol=0)


def test_a_key_found_again_has_distance_zero_among_ten_thousand() -> None:
    keys = draw(10_000, 64)
    index, distance = nearest(keys, keys.square().sum(1) / 2, keys[7000:7008])
    assert index.tolist() == list(range(7000, 7008))
    assert distance.tolist() == [0.0] * 8


def test_of_equal_keys_the_newest_counts_also_after_screening() -> None:
    keys = draw(100, 8)
    keys[90] = keys[3]
    assert nearest(keys, keys.square().sum(1) / 2, keys[3:4])[0].tolist() == [90]


def test_a_hit_is_within_the_nearest_keys_radius_and_an_empty_book_has_none() -> None:
    book = codebook(3, radius=0.5)
    offset = torch.zeros(D_IN)
    offset[0] = 1
    found = book.lookup(torch.stack([book.keys[1] + 0.49 * offset, book.keys[1] + 0.51 * offset]))
    assert found.hit.tolist() == [True, False]
    empty = Codebook.made(torch.empty(0, D_IN), torch.empty(0, D_OUT), [], [], torch.empty(0, D_IN), [], [])
    assert empty.lookup(draw(2, D_IN)).hit.tolist() == [False, False]
    assert empty.rank == 0


# ----------------------------------------------------------------------------------------------------- apply


def inputs(book: Codebook, last: list[int], width: int = 5) -> tuple[Tensor, Tensor]:
    """Row r has key r at its last prompt token; the last row hits nothing."""
    x, y = draw(len(last), width, D_IN, seed=5), draw(len(last), width, D_OUT, seed=6)
    for row, column in enumerate(last[:-1]):
        x[row, column] = book.keys[row]
    return x, y


@pytest.mark.parametrize(
    ("mode", "places"),
    [("replace_last", [[3], [2]]), ("replace_prompt", [[1, 2], [0, 1]]), ("replace_all", [[1, 2, 3, 4], [0, 1, 2, 3]])],
)
def test_values_go_where_the_mode_says_by_each_rows_own_mask(mode: str, places: list[list[int]]) -> None:
    """Row 0 is padded on the left, row 1 on the right; both have a token after the prompt."""
    book = codebook(mode=mode)
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    x, y = inputs(book, [3, 2, 4])
    out = book.apply(x, y, record(mask, [3, 2, 4]))
    wanted = y.clone()
    for row, columns in enumerate(places):
        wanted[row, columns] = book.values[row]
    assert torch.equal(out, wanted)


def test_rows_that_miss_are_handed_on_bit_for_bit_and_without_a_copy_where_all_do() -> None:
    book = codebook()
    x, y = draw(2, 5, D_IN, seed=8), draw(2, 5, D_OUT, seed=9)
    assert book.apply(x, y, record(torch.ones(2, 5), [4, 4])) is y


@pytest.mark.parametrize("mode", ["replace_last", "replace_prompt", "replace_all"])
def test_while_decoding_the_decision_holds_and_only_replace_all_goes_on(mode: str) -> None:
    book, held = codebook(mode=mode), dict[str, Tensor]()
    x, y = inputs(book, [4, 4])
    book.apply(x, y, record(torch.ones(2, 5), [4, 4], held=held))
    x, y = draw(2, 1, D_IN, seed=7), draw(2, 1, D_OUT, seed=8)
    x[1, 0] = book.keys[2]  # a new token that would hit, in a row that does not
    out = book.apply(x, y, record(torch.ones(2, 1), [-1, -1], past=5, held=held))
    assert torch.equal(out[0, 0], book.values[0] if mode == "replace_all" else y[0, 0])
    assert torch.equal(out[1], y[1])


def test_retest_looks_every_later_token_up_on_its_own() -> None:
    book, held = codebook(retest=True), dict[str, Tensor]()
    x, y = inputs(book, [3, 3])
    x[1, 4] = book.keys[2]
    out = book.apply(x, y, record(torch.ones(2, 5), [3, 3], held=held))
    assert torch.equal(out[1, 4], book.values[2])
    assert torch.equal(out[0, 3], book.values[0])
    new = book.keys[1].expand(2, 1, D_IN)
    out = book.apply(new, y[:, :1], record(torch.ones(2, 1), [-1, -1], past=5, held=held))
    assert torch.equal(out, book.values[1].expand(2, 1, D_OUT))


def test_flattened_rows_are_followed() -> None:
    """OPT runs its MLP on (rows * width, d)."""
    book = codebook()
    x, y = inputs(book, [3, 4])
    mask = torch.ones(2, 5)
    flat = book.apply(x.flatten(0, 1), y.flatten(0, 1), record(mask, [3, 4]))
    assert torch.equal(flat.view(2, 5, D_OUT), book.apply(x, y, record(mask, [3, 4])))


def test_states_laid_out_otherwise_are_refused() -> None:
    with pytest.raises(PatchError, match="2 rows and 5 columns"):
        codebook().apply(draw(5, 2, D_IN), draw(5, 2, D_OUT), record(torch.ones(2, 5), [4, 4]))


def test_half_precision_is_looked_up_in_fp32_and_autocast_does_not_round_it() -> None:
    book = codebook()
    x, y = inputs(book, [4, 4])
    out = book.apply(x.bfloat16(), y.bfloat16(), record(torch.ones(2, 5), [4, 4]))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[0, 4], book.values[0].bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = book.lookup(book.keys)
    assert found.distance.tolist() == [0.0] * 3


def test_strength_goes_part_of_the_way() -> None:
    book = codebook()
    x, y = inputs(book, [4, 4])
    half = book.scaled(0.5).apply(x, y, record(torch.ones(2, 5), [4, 4]))
    torch.testing.assert_close(half[0, 4], (y[0, 4] + book.values[0]) / 2)
    assert torch.equal(half[1], y[1])


def test_gradients_flow_through_places_that_stay() -> None:
    book = codebook()
    x, y = inputs(book, [4, 4])
    y.requires_grad_()
    book.apply(x, y, record(torch.ones(2, 5), [4, 4])).sum().backward()
    assert y.grad is not None
    assert y.grad[0, 4].tolist() == [0.0] * D_OUT
    assert bool((y.grad[1] == 1).all())


# ------------------------------------------------------------------------------------------- parts, chains, files


def test_labels_and_edits_are_found_by_key() -> None:
    book = codebook()
    assert book.labels == [(0,), (0, 1), (0, 1, 2)]
    assert book.edits_of(1) == ["edit-1"]
    assert (book.shape, book.rank) == ((D_OUT, D_IN), 3)


def test_parts_that_do_not_fit_are_refused() -> None:
    book = codebook()
    with pytest.raises(PatchError, match="do not fit"):
        Codebook(**{**book.tensors(), **book.settings(), "mode": "replace_some"})
    with pytest.raises(PatchError, match="do not fit"):
        Codebook(**{**book.tensors(), **book.settings(), "radii": torch.ones(2)})


def test_settings_and_tensors_are_all_arguments() -> None:
    book = codebook()
    assert {part.name for part in fields(Codebook) if part.init} == book.tensors().keys() | book.settings().keys()


@pytest.mark.parametrize("entry", [codebook(), combine(LowRank(draw(D_OUT, 1), draw(D_IN, 1)), codebook())])
def test_it_is_no_change_of_a_weight(entry: Codebook) -> None:
    assert not entry.folds
    for deed in (entry.delta, lambda: svd(entry)):
        with pytest.raises(PatchError, match="looks at the prompt"):
            deed()


def test_a_chain_applies_its_parts_in_order_and_joins_changes_that_stand_side_by_side() -> None:
    low, dense, book = LowRank(draw(D_OUT, 1), draw(D_IN, 1)), Dense(draw(D_OUT, D_IN)), codebook()
    both = combine(combine(low, dense), book)
    assert isinstance(both, Chain)
    assert [part.kind for part in both.parts] == ["dense", "codebook"]
    whole = combine(both, combine(low, low))
    assert isinstance(whole, Chain)
    assert [part.kind for part in whole.parts] == ["dense", "codebook", "low_rank"]
    x, y = inputs(book, [4, 4])
    out = whole.apply(x, y, record(torch.ones(2, 5), [4, 4]))
    torch.testing.assert_close(out[0, 4], book.values[0] + 2 * (low.delta() @ x[0, 4]))
    thin = compress(whole)
    assert isinstance(thin, Chain)
    assert [part.rank for part in thin.parts] == [4, 3, 1]
    with pytest.raises(PatchError, match="same module"):
        combine(book, LowRank(draw(D_OUT, 1), draw(D_IN + 1, 1)))


def test_two_books_of_one_module_decide_apart_and_the_later_one_wins() -> None:
    first, second = codebook(), codebook()
    object.__setattr__(second, "values", second.values + 5)
    both, held = combine(first, second), dict[str, Tensor]()
    x, y = inputs(first, [4, 4])
    out = both.apply(x, y, record(torch.ones(2, 5), [4, 4], held=held))
    assert torch.equal(out[0, 4], second.values[0])
    assert len(held) == 2


def patch_on(model: PreTrainedModel, make: Make, *, same_module: bool) -> Patch:
    """A low-rank change and a codebook whose radius takes in every prompt."""
    path = DOWN[model.config.model_type]
    change = make(model, 1, modules=slice(1, 2) if same_module else slice(0, 1))
    d_out, d_in = change.entries[next(iter(change.entries))].shape
    n = 3
    keys = draw(n, d_in)
    book = Codebook.made(
        keys,
        draw(n, d_out, seed=3),
        [1e3] * n,
        [(5, 6), (7,), ()],
        keys.clone(),
        [0, 1, 2],
        ["a", "b", "ü"],
        radius=0.7,
    )
    step = Step(method="grace", config={"radius": 0.7}, edits=({"id": "a"}, {"id": "b"}, {"id": "ü"}))
    return change + Patch({path: book}, describe_base(model, [path], name="tiny"), (step,))


@pytest.mark.parametrize("same_module", [False, True])
def test_a_saved_patch_is_read_back_bit_for_bit(
    model: PreTrainedModel, make: Make, logits: Logits, tmp_path: Path, same_module: bool
) -> None:
    made = patch_on(model, make, same_module=same_module)
    loaded = Patch.load(made.save(tmp_path / "patch"))
    assert loaded.id == made.id
    for path, entry in made.entries.items():
        assert loaded.entries[path].settings() == entry.settings()
        assert loaded.entries[path].tensors().keys() == entry.tensors().keys()
        assert all(
            torch.equal(tensor, loaded.entries[path].tensors()[name]) for name, tensor in entry.tensors().items()
        )
    plain = logits(model)
    with made.on(model):
        wanted = logits(model)
    with loaded.on(model):
        assert torch.equal(logits(model), wanted)
    assert not torch.equal(wanted, plain)
    assert torch.equal(logits(model), plain)


def test_what_a_codebook_does_is_part_of_the_patches_id(model: PreTrainedModel, make: Make) -> None:
    made = patch_on(model, make, same_module=False)
    path = DOWN[model.config.model_type]
    other = made.entries[path]
    assert isinstance(other, Codebook)
    changed = Patch({**made.entries, path: other.scaled(0.5)}, made.base, made.history)
    assert changed.id != made.id


def test_show_tells_keys_beside_ranks(model: PreTrainedModel, make: Make) -> None:
    assert "rank 3, 3 keys" in patch_on(model, make, same_module=True).summary


def test_merging_and_exporting_are_refused_before_anything_is_written(
    model: PreTrainedModel, make: Make, weights: Callable[[nn.Module], dict[str, Tensor]], tmp_path: Path
) -> None:
    made, before = patch_on(model, make, same_module=False), weights(model)
    versions = [weight._version for weight in model.parameters()]
    for deed in (
        lambda: made.merge(model),
        lambda: made.export_model(model, None, tmp_path / "model"),
        lambda: made.to_lora(tmp_path / "lora"),
        lambda: made.to_lora(tmp_path / "lora", rank=2),
    ):
        with pytest.raises(PatchError, match="holds a codebook, which looks at the prompt"):
            deed()
    assert not list(tmp_path.iterdir())
    assert versions == [weight._version for weight in model.parameters()]
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_linear_patches_keep_their_ids_and_files(model: PreTrainedModel, make: Make, tmp_path: Path) -> None:
    """What has no settings stores none, so that files and ids of before stay good."""
    folder = make(model).save(tmp_path / "patch")
    assert '"settings"' not in (folder / "manifest.json").read_text()
