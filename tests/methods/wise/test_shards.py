"""WISE's arithmetic against values worked out by hand; no model is run."""

import math

import pytest
import torch
from torch import Tensor

from retcon.methods.wise.shards import Margins, Shards, drawn_mask, generator, margin_loss, replay_loss, ties
from retcon.patch.gated import Memory

PUBLISHED = Margins(outside=5, inside=20, between=10)
FIRST, SECOND = torch.tensor([0.4, -0.2, 0.1, 0.0]), torch.tensor([-0.1, -0.6, 0.3, 0.05])


# ------------------------------------------------------------------------------------------------- the margins


@pytest.mark.parametrize(("inside", "outside", "wanted"), [(12, 3, 9), (25, 6, 1), (30, 2, 0), (0, 0, 30)])
def test_the_loss_of_the_margins_has_the_published_values(inside: float, outside: float, wanted: float) -> None:
    found = margin_loss(torch.tensor([float(inside)]), torch.tensor([float(outside)]), PUBLISHED)
    assert float(found) == pytest.approx(wanted)


def test_each_term_is_averaged_over_its_positive_items_alone() -> None:
    """Rows at 12 and 30: pairs give (1, -17), the inside (8, -10); the second row counts nowhere."""
    assert float(margin_loss(torch.tensor([12.0, 30.0]), torch.tensor([3.0]), PUBLISHED)) == pytest.approx(1 + 8)
    assert float(margin_loss(torch.tensor([40.0]), torch.tensor([3.0, 7.0, 9.0]), PUBLISHED)) == pytest.approx(3)


def test_a_margin_that_is_met_has_no_gradient_and_one_that_is_not_pushes_the_right_way() -> None:
    inside, outside = torch.tensor([12.0, 30.0], requires_grad=True), torch.tensor([3.0, 7.0], requires_grad=True)
    margin_loss(inside, outside, PUBLISHED).backward()
    assert inside.grad is not None
    assert outside.grad is not None
    assert inside.grad[0] < 0 == inside.grad[1]
    assert (outside.grad > 0).all()


def test_replay_keeps_other_memories_edits_below_alpha_and_its_own_above_beta() -> None:
    margins = Margins(5, 20, 10)
    others = [torch.tensor([7.0, 4.0]), torch.tensor([5.0]), torch.tensor([9.0, 6.0])]
    # positive parts 2; none; 4 and 1: each group's mean, then over the three groups
    assert float(replay_loss(others, torch.tensor([21.0, 25.0]), margins)) == pytest.approx((2 + 0 + 2.5) / 3)
    assert float(replay_loss([torch.tensor([1.0])], torch.tensor([14.0, 30.0]), margins)) == 6
    assert float(replay_loss([torch.tensor([6.0])], torch.empty(0), margins)) == 1
    assert float(replay_loss([], torch.tensor([14.0]), margins)) == 6


def test_margins_scale_together() -> None:
    assert PUBLISHED.scaled(0.5) == Margins(2.5, 10, 5)


# --------------------------------------------------------------------------------------------------- the merge


@pytest.mark.parametrize(("density", "wanted"), [(0.5, [0.4, -0.4, 0.3, 0.0]), (1.0, [0.4, -0.4, 0.2, 0.05])])
def test_the_merge_has_the_values_worked_out_by_hand(density: float, wanted: list[float]) -> None:
    torch.testing.assert_close(ties([FIRST, SECOND], [0.5, 0.5], density), torch.tensor(wanted))


def test_equal_shards_at_density_one_give_the_shard() -> None:
    torch.testing.assert_close(ties([SECOND, SECOND], [0.5, 0.5], 1.0), SECOND)


def test_one_shard_at_density_one_is_itself() -> None:
    delta = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ties([delta], [1.0], 1.0), delta)


def test_weights_decide_the_sign_and_the_mean() -> None:
    one, other = torch.tensor([1.0, 1.0]), torch.tensor([-2.0, 3.0])
    torch.testing.assert_close(ties([one, other], [0.6, 0.4], 1.0), torch.tensor([-2.0, 1.8]))
    torch.testing.assert_close(ties([one, other], [0.9, 0.1], 1.0), torch.tensor([1.0, 1.2]))


def test_opposite_entries_count_as_plus_and_all_shapes_are_kept() -> None:
    found = ties([torch.tensor([[1.0]]), torch.tensor([[-1.0]])], [0.5, 0.5], 1.0)
    assert found.tolist() == [[1.0]]


# --------------------------------------------------------------------------------------------------- the masks


def test_masks_come_from_the_seed_and_the_shards_number_alone() -> None:
    state = torch.random.get_rng_state()
    one, other = (drawn_mask(0, number, (200, 300), 0.2) for number in (0, 1))
    torch.manual_seed(5)
    assert torch.equal(one, drawn_mask(0, 0, (200, 300), 0.2))
    assert not torch.equal(one, drawn_mask(1, 0, (200, 300), 0.2))
    assert float(one.float().mean()) == pytest.approx(0.2, abs=0.01)
    assert float((one & other).float().mean()) == pytest.approx(0.04, abs=0.005)
    torch.random.set_rng_state(state)


def test_drawing_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    drawn_mask(0, 0, (8, 8), 0.5)
    torch.rand(3, generator=generator(0, "ordinary", 1))
    assert torch.equal(torch.random.get_rng_state(), state)


# ----------------------------------------------------------------------------------------------- closing, merging


def shards(**options: object) -> Shards:
    named: dict[str, object] = {
        "size": (3, 4), "seed": 0, "mask_ratio": 0.5, "save_freq": 2, "merge_freq": None, "density": 1.0,
        "variant": "retrieve",
    }  # fmt: skip
    return Shards(**(named | options))  # type: ignore[arg-type]


def learnt(kept: Shards, n: int, *, start: int = 0) -> list[tuple[str, ...]]:
    """Enter n edits, each of which writes its number at the mask; the memories that were measured, by their edits."""
    seen: list[tuple[str, ...]] = []

    def measure(memory: Memory) -> float:
        seen.append(memory.names)
        return 100 + len(memory.names)

    for number in range(start, start + n):
        live = kept.open()
        kept.learn(f"e{number}", live.delta + (number + 1) * live.mask, 50 - number)
        kept.settle(measure, end=False)
    kept.settle(measure, end=True)
    return seen


def roles(kept: Shards) -> list[tuple[str, tuple[str, ...]]]:
    return [(memory.role, memory.names) for memory in kept.all()]


def test_below_save_freq_the_memory_is_measured_at_the_end_and_stays_open() -> None:
    """Defect W12: runs shorter than save_freq stored nothing."""
    kept = shards(save_freq=500)
    assert learnt(kept, 3) == [("e0", "e1", "e2")]
    assert roles(kept) == [("live", ("e0", "e1", "e2"))]
    assert kept.all()[0].threshold == 103
    learnt(kept, 1, start=3)
    assert roles(kept) == [("live", ("e0", "e1", "e2", "e3"))]
    assert kept.opened == 1


def test_a_full_memory_is_closed_and_measured_and_the_next_one_starts_at_the_module_with_a_mask_of_its_own() -> None:
    kept = shards()
    assert learnt(kept, 3) == [("e0", "e1"), ("e2",)]
    assert roles(kept) == [("shard", ("e0", "e1")), ("live", ("e2",))]
    one, live = kept.all()
    assert torch.equal(live.delta, 3.0 * live.mask)
    assert not torch.equal(one.mask, live.mask)
    assert [memory.threshold for memory in kept.all()] == [102, 101]


def test_after_merge_freq_edits_the_shards_become_one() -> None:
    kept = shards(merge_freq=4)
    measured = learnt(kept, 5)
    assert ("e0", "e1", "e2", "e3") in measured
    assert roles(kept) == [("merged", ("e0", "e1", "e2", "e3")), ("live", ("e4",))]
    merged = kept.all()[0]
    masks = [drawn_mask(0, number, (3, 4), 0.5) for number in (0, 1)]
    torch.testing.assert_close(merged.delta, ties([3.0 * masks[0], 7.0 * masks[1]], [0.5, 0.5], 1.0))
    assert torch.equal(merged.mask, merged.delta != 0)
    learnt(kept, 3, start=5)
    assert [role for role, _ in roles(kept)] == ["merged", "merged"]  # in the retrieve variant each group is its own


def test_in_the_merge_variant_nothing_closed_is_left_and_the_old_merge_weighs_more() -> None:
    kept = shards(variant="merge", merge_freq=4)
    learnt(kept, 3)
    assert roles(kept) == [("merged", ("e0", "e1")), ("live", ("e2",))]
    old = kept.all()[0].delta
    learnt(kept, 1, start=3)
    assert roles(kept) == [("merged", ("e0", "e1", "e2", "e3"))]
    mask = drawn_mask(0, 1, (3, 4), 0.5)
    torch.testing.assert_close(kept.all()[0].delta, ties([old, 7.0 * mask], [0.6, 0.4], 1.0))
    assert float(kept.all()[0].delta.max()) == 7


def test_restored_shards_go_on_as_if_nothing_had_happened() -> None:
    whole, first, second = shards(), shards(), shards()
    learnt(whole, 1)
    learnt(whole, 4, start=1)
    learnt(first, 1)
    second.restore(first.all(), first.opened)
    learnt(second, 4, start=1)
    assert roles(second) == roles(whole)
    pairs: list[tuple[Tensor, Tensor]] = [(a.delta, b.delta) for a, b in zip(whole.all(), second.all(), strict=True)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(math.isfinite(memory.threshold) for memory in whole.all())
