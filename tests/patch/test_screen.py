"""The bound by some coordinates: never above the true distance, and near enough to it to be of use."""

import pytest
import torch
from torch import Tensor

from retcon.patch import Codebook
from retcon.patch.screen import Screen


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("width", [3, 40, 600])
def test_no_bound_is_above_the_distance(width: int, size: float, offset: float) -> None:
    keys = size * (draw(300, width) + offset)
    queries = torch.cat([size * (draw(20, width, seed=1) + offset), keys[:20], keys[:20] * (1 + 1e-6)])
    lower = Screen.of(keys).lower(queries).double()
    true = torch.stack([(keys.double() - query.double()).square().sum(1) for query in queries])
    assert (lower <= true).all()


def test_it_takes_the_coordinates_that_differ_most() -> None:
    keys = draw(500, 64)
    loud = torch.arange(3, 64, 4)
    keys[:, loud] *= 10
    screen = Screen.of(keys)
    assert sorted(screen.where.tolist()) == loud.tolist()
    queries = draw(5, 64, seed=1)
    queries[:, loud] *= 10
    true = torch.cdist(queries.double(), keys.double()).square()
    assert (screen.lower(queries).double() / true).median() > 0.5


def book(keys: Tensor, radii: Tensor) -> Codebook:
    labels, names = [(1,)] * len(keys), ["one"]
    return Codebook.made(keys, draw(len(keys), 3), radii.tolist(), labels, keys[:1], [0], names)


@pytest.mark.parametrize("radius", [1e-6, 0.3, 4.0, 9.0, 50.0])
@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_hits_are_those_of_the_full_lookup(radius: float, spread: float) -> None:
    """Far from all keys, at a key, near one, among many that are nearly as near; radii alike and of all sizes."""
    width = 48
    centres = draw(60, width)
    keys = (centres.repeat(12, 1) + spread * draw(720, width, seed=1)).contiguous()
    keys[700] = keys[5]  # of equal ones the newest counts
    sizes = torch.rand(720, generator=torch.Generator().manual_seed(2))
    queries = torch.cat([draw(40, width, seed=3), keys[:40], keys[40:80] + 0.02 * draw(40, width, seed=4), centres])
    for radii in (torch.full((720,), radius), 2 * radius * sizes):
        made, screened = book(keys, radii), book(keys, radii)
        screened._screen.append(Screen.of(keys))  # also where it would be left out
        found = made.lookup(queries)
        for one in (made, screened):
            assert torch.equal(one.hits(queries), torch.where(found.hit, found.key, -1))
            assert one._screen, "it was looked up in full from the start"
        assert made._screen[0] is not None or radius > 1


def test_few_keys_are_looked_up_in_full() -> None:
    made = book(draw(100, 8), torch.full((100,), 0.5))
    assert made.hits(made.keys).tolist() == list(range(100))
    assert not made._screen


@pytest.mark.parametrize(("radius", "tells"), [(0.5, True), (60.0, False)])
def test_where_balls_are_so_wide_that_the_screen_tells_nothing_all_is_looked_up_in_full(
    radius: float, tells: bool
) -> None:
    made = book(draw(2000, 400), torch.full((2000,), radius))
    queries = draw(10, 400, seed=1)
    assert made.hits(queries).tolist() == (10 * [-1] if tells else made.lookup(queries).key.tolist())
    assert (made._screen[0] is not None) == tells


def test_a_book_that_is_placed_where_it_stands_keeps_its_screen() -> None:
    made = book(draw(600, 8), torch.full((600,), 0.1))
    made.hits(made.keys[:1])
    assert made.to("cpu", torch.float32) is made
    assert made.to("cpu", torch.float64) is not made
