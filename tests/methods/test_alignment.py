"""The alignment: what its equations say, who feels whom, and how little it keeps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from retcon.methods.alignment import Alignment, Terms, misalignment, unit
from retcon.values import Step

N, D_KEY, D = 9, 7, 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(facts: list[int], shifts: Tensor, number: int = 0) -> Step:
    return Step(torch.tensor(facts), shifts, torch.ones_like(shifts), number)


def cosine(one: Tensor, two: Tensor) -> float:
    return float(one @ two / (one.norm() * two.norm()))


def softmax(values: list[float], temperature: float) -> list[float]:
    weights = [math.exp(value / temperature) for value in values]
    return [weight / sum(weights) for weight in weights]


def plainly(i: int, keys: Tensor, shifts: Tensor, terms: Terms) -> float:
    """The penalty of fact i, from the equations and one number after the other."""
    if i == 0:
        return 0.0
    near = [cosine(keys[i], keys[j]) for j in range(i)]
    alike = [cosine(shifts[i], shifts[j]) for j in range(i)]
    p, q = softmax(near, terms.temperature), softmax(alike, terms.temperature)
    a, b = (p, q) if terms.kl_direction == "code" else (q, p)
    divergence = sum(x * math.log((x + 1e-8) / (y + 1e-8)) for x, y in zip(a, b, strict=True))
    top = sorted(range(i), key=lambda j: -near[j])[: terms.top]
    if terms.mse_form == "code":
        weights = softmax([near[j] for j in top], terms.temperature)
        miss = sum(w * (near[j] - alike[j]) ** 2 for w, j in zip(weights, top, strict=True))
    else:
        miss = sum((p[j] - q[j]) ** 2 for j in top) / len(top)
    return terms.align_kl * divergence + terms.align_mse * miss


VARIANTS = [Terms(), Terms(top=3), Terms(kl_direction="paper"), Terms(mse_form="paper"), Terms(mse_form="paper", top=2)]


@pytest.mark.parametrize("terms", VARIANTS)
@pytest.mark.parametrize("start", [0, 4])
def test_it_is_what_the_equations_say(terms: Terms, start: int) -> None:
    keys, shifts = drawn(N, D_KEY), drawn(N, D, seed=1)
    penalty = Alignment(keys, D, terms)
    penalty.keep(range(start), shifts[:start])
    penalty.begin(range(start, N))
    found = penalty(step(list(range(start, N)), shifts[start:]))
    wanted = [plainly(i, keys, shifts, terms) for i in range(start, N)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_facts_of_one_tie_do_not_align_to_each_other() -> None:
    """Only to those before them of other ties; so the first tie is free, as the first fact is."""
    keys, shifts = drawn(N, D_KEY), drawn(N, D, seed=1)
    units = torch.tensor([0, 0, 1, 2, 2, 2, *range(3, N - 3)])
    penalty = Alignment(keys, D, Terms(), units=units)
    penalty.begin(range(N))
    found = penalty(step(list(range(N)), shifts))
    assert found[:2].tolist() == [0, 0]
    others = [0, 1, 2]  # what facts 3 to 5 look at
    for member in (3, 4, 5):
        seen = [*others, member]
        assert float(found[member]) == pytest.approx(plainly(3, keys[seen], shifts[seen], Terms()), rel=1e-9)


def test_the_first_fact_is_free() -> None:
    penalty = Alignment(drawn(N, D_KEY), D, Terms())
    for block in (range(1), range(4)):
        penalty.begin(block)
        shifts = drawn(len(block), D).requires_grad_()
        value = penalty(step(list(block), shifts))[0]
        (slope,) = torch.autograd.grad(value, shifts)
        assert value == 0
        assert not slope.any()


@pytest.mark.parametrize("direction", ["code", "paper"])
def test_of_the_second_fact_only_the_squared_difference_is_felt(direction: Any) -> None:
    """A softmax over one fact is 1, whatever the similarity."""
    keys, shifts = drawn(2, D_KEY), drawn(2, D, seed=1).requires_grad_()
    penalty = Alignment(keys, D, Terms(align_mse=0.0, kl_direction=direction))
    penalty.begin(range(2))
    value = penalty(step([0, 1], shifts))
    assert value.tolist() == [0, 0]
    assert not torch.autograd.grad(value.sum(), shifts)[0].any()
    penalty = Alignment(keys, D, Terms(align_kl=1e6, align_mse=3.0, kl_direction=direction))
    penalty.begin(range(2))
    gap = cosine(keys[0], keys[1]) - cosine(*shifts.detach())
    assert penalty(step([0, 1], shifts))[1].item() == pytest.approx(3 * gap**2)


def test_no_fact_moves_another() -> None:
    """The gradient of a fact's penalty is its own: nothing flows into those it is compared with."""
    penalty = Alignment(drawn(N, D_KEY), D, Terms())
    penalty.begin(range(N))
    shifts = drawn(N, D, seed=1).requires_grad_()
    value = penalty(step(list(range(N)), shifts))
    for i in range(1, N):
        (slope,) = torch.autograd.grad(value[i], shifts, retain_graph=True)
        assert slope[i].any()
        assert not slope[torch.arange(N) != i].any()


def test_no_fact_feels_a_later_one() -> None:
    keys, shifts = drawn(N, D_KEY), drawn(N, D, seed=1)
    for i in range(N):
        moved = shifts.clone()
        moved[i] = drawn(D, seed=2)
        seen = []
        for given in (shifts, moved):
            penalty = Alignment(keys, D, Terms())
            penalty.begin(range(N))
            seen.append(penalty(step(list(range(N)), given)))
        assert torch.equal(seen[0][:i], seen[1][:i])
        assert (seen[0][i + 1 :] != seen[1][i + 1 :]).all()


def test_a_fact_that_has_finished_is_remembered() -> None:
    keys, shifts = drawn(N, D_KEY), drawn(N, D, seed=1)
    penalty = Alignment(keys, D, Terms())
    penalty.keep(range(3), shifts[:3])
    penalty.begin(range(3, N))
    penalty(step(list(range(3, N)), shifts[3:]))  # 4 and 7 finish here
    later = shifts.clone()
    later[[3, 5, 6, 8]] += drawn(4, D, seed=3)
    found = penalty(step([3, 5, 6, 8], later[[3, 5, 6, 8]], 1))
    assert found.tolist() == pytest.approx([plainly(i, keys, later, Terms()) for i in (3, 5, 6, 8)])


def test_a_bank_from_elsewhere_stays_as_it_is() -> None:
    """In the second of two passes facts look at the shifts of the first, not at their neighbours' present ones."""
    keys, first, second = drawn(N, D_KEY), drawn(N, D, seed=1), drawn(N, D, seed=2)
    penalty = Alignment(keys, D, Terms(), live=False)
    penalty.keep(range(N), first)
    penalty.begin(range(2, 6))
    found = penalty(step([2, 3, 4, 5], second[2:6]))
    for i in range(2, 6):
        mixed = torch.cat([first[:i], second[i : i + 1]])
        assert found[i - 2].item() == pytest.approx(plainly(i, keys, mixed, Terms()))


def test_a_shift_of_zero_is_like_none_and_is_not_pushed() -> None:
    keys, shifts = drawn(4, D_KEY), drawn(4, D, seed=1)
    shifts[[1, 3]] = 0
    penalty = Alignment(keys, D, Terms(align_kl=0.0))
    penalty.begin(range(4))
    leaf = shifts.requires_grad_()
    value = penalty(step([0, 1, 2, 3], leaf))
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.isfinite(value).all()
    assert torch.isfinite(slope).all()
    assert not slope[[1, 3]].any()
    assert value[1].item() == pytest.approx(8 * cosine(keys[0], keys[1]) ** 2)


def test_what_is_searched_must_be_told() -> None:
    penalty = Alignment(drawn(3, D_KEY), D, Terms())
    with pytest.raises(ValueError, match="begin first"):
        penalty(step([0], drawn(1, D)))
    penalty.begin(range(2))
    penalty.keep(range(2), drawn(2, D))
    with pytest.raises(ValueError, match="begin first"):
        penalty(step([2], drawn(1, D)))


# ------------------------------------------------------------------------------------------- misalignment


@pytest.mark.parametrize("rows", [1, 4, 512])
def test_misalignment_is_what_its_equation_says(rows: int) -> None:
    keys, shifts = drawn(N, D_KEY), drawn(N, D, seed=1)
    found = misalignment(keys, shifts, temperature=0.3, rows=rows)
    for i in range(N):
        others = [j for j in range(N) if j != i]
        p = softmax([cosine(keys[i], keys[j]) for j in others], 0.3)
        q = softmax([cosine(shifts[i], shifts[j]) for j in others], 0.3)
        wanted = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        assert found[i].item() == pytest.approx(wanted, rel=1e-9)


def test_shifts_that_stand_to_one_another_as_their_keys_do_are_aligned() -> None:
    keys = drawn(N, D_KEY)
    turned = keys @ torch.linalg.qr(drawn(D_KEY, D_KEY, seed=1)).Q
    stretched = turned * (1 + drawn(N, 1, seed=2).abs())
    assert misalignment(keys, stretched).abs().max() < 1e-12
    assert misalignment(keys, drawn(N, D, seed=3)).min() > 1e-2


def test_a_fact_alone_is_aligned() -> None:
    assert misalignment(drawn(1, D_KEY).float(), drawn(1, D).float()).tolist() == [0]


# ------------------------------------------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that is made inside the block."""

    size: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            self.size = max(self.size, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return out


def test_nothing_of_all_facts_by_all_facts_is_made() -> None:
    n, width, members = 4000, 8, 16
    keys, shifts = drawn(n, width).float(), drawn(n, width, seed=1).float()
    with Largest() as seen:  # type: ignore[no-untyped-call]
        penalty = Alignment(keys, width, Terms())
        penalty.keep(range(n - members), shifts[:-members])
        penalty.begin(range(n - members, n))
        penalty(step(list(range(n - members, n)), shifts[-members:]))
        misalignment(keys, shifts, rows=members)
    assert members * n <= seen.size <= 2 * members * n


def test_rows_of_length_one() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert torch.allclose(unit(rows), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
