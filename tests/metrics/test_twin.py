"""Against the model that never saw the forget set."""

import math
import random
import warnings

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from retcon.metrics import twin
from retcon.metrics.twin import Utility, forget_quality, model_utility

RATIOS = st.lists(st.integers(0, 8).map(float), min_size=1, max_size=15)


@pytest.mark.parametrize(("n", "floor"), [(40, 1.86e-23), (200, 1.94e-119), (400, 1.06e-239)])
def test_complete_separation_reaches_the_floor(n: int, floor: float) -> None:
    found = forget_quality([0.0] * n, [1.0] * n)
    assert found is not None
    assert found.floor
    assert found.distance == 1.0
    assert found.log10_p == pytest.approx(math.log10(floor), abs=0.005)
    assert found.p == pytest.approx(floor, rel=0.005)


def test_a_floor_below_every_double_keeps_its_logarithm() -> None:
    found = forget_quality([0.0] * 900, [1.0] * 900)
    assert found is not None
    assert found.p == 0.0
    assert -600 < found.log10_p < -500


@given(RATIOS, RATIOS)
def test_it_agrees_with_scipy(ratios: list[float], other: list[float]) -> None:
    found = forget_quality(ratios, other)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wanted = ks_2samp(ratios, other, method="exact")
    assume(not caught)  # where its own rounding leads above 1, scipy turns to the limit
    assert found is not None
    assert found.distance == pytest.approx(wanted.statistic)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-6)


def test_equal_samples_are_not_told_apart() -> None:
    found = forget_quality([0.1, 0.5, 0.9], [0.1, 0.5, 0.9])
    assert found is not None
    assert (found.p, found.distance, found.floor, found.n) == (1.0, 0.0, False, (3, 3))


def test_it_is_the_same_for_the_reciprocal() -> None:
    draw = random.Random(0)
    ratios, other = [draw.random() + 0.1 for _ in range(30)], [draw.random() + 0.3 for _ in range(25)]
    one, two = forget_quality(ratios, other), forget_quality([1 / r for r in ratios], [1 / r for r in other])
    assert one is not None
    assert two is not None
    assert one.p == pytest.approx(two.p)
    assert one.distance == pytest.approx(two.distance)


def test_the_limit_for_many_items_is_close_to_the_exact_value(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    ratios, other = [draw.random() for _ in range(300)], [draw.random() ** 1.5 for _ in range(280)]
    exact = forget_quality(ratios, other)
    monkeypatch.setattr(twin, "_EXACT", 0)
    limit = forget_quality(ratios, other)
    same = forget_quality(ratios, ratios)
    assert exact is not None
    assert limit is not None
    assert same is not None
    assert 1e-4 < exact.p < 0.5
    assert limit.p == pytest.approx(exact.p, rel=0.25)
    assert same.p == 1.0


def test_without_items_there_is_no_test() -> None:
    assert forget_quality([], [1.0]) is forget_quality([1.0], []) is None


def test_utility_is_the_harmonic_mean_of_nine() -> None:
    one, half = Utility(1.0, 1.0, 1.0), Utility(0.5, 0.5, 0.5)
    assert model_utility(one, one, half) == pytest.approx(9 / 12)
    assert model_utility(one, one, Utility(1.0, 0.0, 1.0)) == 0.0
    assert model_utility(one, one, Utility(1.0, None, 1.0)) is None


def test_ratios_that_are_no_numbers_have_no_forget_quality() -> None:
    assert forget_quality([math.nan] * 40, [0.5] * 40) is forget_quality([0.5], [math.nan]) is None
