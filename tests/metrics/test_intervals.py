"""Bootstrap over clusters."""

import math

import numpy as np
import pytest

from retcon.metrics.intervals import interval, paired, resample_means


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = {"a": [float(n % 3 == 0) for n in range(50)]}
    same = [interval(resample_means(values, range(50), seed=1)["a"]) for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != interval(resample_means(values, range(50), seed=2)["a"])


def test_it_agrees_with_the_normal_approximation() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=400)
    bounds = interval(resample_means({"a": values.tolist()}, range(400), resamples=4_000)["a"])
    half = 1.96 * values.std() / 20
    assert bounds == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)


def test_cases_of_one_subject_are_no_new_evidence() -> None:
    subjects, value = [n // 10 for n in range(100)], [float((n // 10) % 2) for n in range(100)]
    clustered = interval(resample_means({"a": value}, subjects)["a"])
    alone = interval(resample_means({"a": value}, range(100))["a"])
    once = interval(resample_means({"a": value[::10]}, range(10))["a"])
    assert clustered is not None
    assert alone is not None
    assert clustered == once
    assert clustered[1] - clustered[0] > 2 * (alone[1] - alone[0])


def test_large_clusters_weigh_by_their_rows() -> None:
    samples = resample_means({"a": [1.0, 1.0, 1.0, 0.0]}, ["x", "x", "x", "y"])["a"]
    assert set(samples.tolist()) == {0.0, 0.75, 1.0}


def test_weights_are_those_of_the_rows() -> None:
    samples = resample_means({"a": [1.0, 0.0]}, ["x", "y"], weights=[3.0, 1.0])["a"]
    assert set(samples.tolist()) == {0.0, 0.75, 1.0}


def test_columns_share_their_samples() -> None:
    values = [float(n % 4 == 0) for n in range(40)]
    samples = resample_means({"a": values, "b": [1 - value for value in values]}, range(40))
    np.testing.assert_allclose(samples["a"] + samples["b"], 1.0)


def test_a_column_with_one_cluster_or_none_has_no_interval() -> None:
    found = resample_means({"a": [None, 1.0, 0.0], "b": [None] * 3, "c": [1.0, 1.0, 0.0]}, ["x", "y", "y"])
    assert list(found) == ["c"]
    assert resample_means({}, []) == {}


def test_samples_without_a_value_are_left_out() -> None:
    samples = resample_means({"a": [1.0, 0.0, None, None, None, None]}, range(6))["a"]
    assert np.isnan(samples).any()
    bounds = interval(samples)
    assert bounds == (0.0, 1.0)
    assert interval(np.full(3, np.nan)) is None


def test_two_methods_that_differ_on_most_cases_differ_and_the_order_of_naming_only_turns_the_sign() -> None:
    first, second = [1.0] * 30 + [0.0] * 10, [0.0] * 25 + [1.0] * 5 + [0.0] * 10
    there, back = paired(first, second, range(40)), paired(second, first, range(40))
    assert there is not None
    assert back is not None
    assert (there.difference, back.difference) == (0.625, -0.625)
    assert there.low > 0
    assert there.p < 0.001
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p == back.p


def test_no_difference_has_no_significance() -> None:
    values = [float(n % 2) for n in range(40)]
    same = paired(values, values, range(40))
    assert same is not None
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_p_agrees_with_the_normal_approximation() -> None:
    random = np.random.default_rng(1)
    differences = random.normal(0.1, 1.0, size=400)
    found = paired(differences.tolist(), [0.0] * 400, range(400))
    assert found is not None
    z = differences.mean() / (differences.std() / 20)
    assert found.p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.015)


def test_under_no_difference_small_p_are_as_rare_as_they_should_be() -> None:
    random = np.random.default_rng(2)
    few = 0
    for _ in range(200):
        found = paired(random.normal(size=60).tolist(), random.normal(size=60).tolist(), range(60), resamples=200)
        assert found is not None
        few += found.p < 0.1
    assert 8 <= few <= 40  # 20 are expected


def test_only_rows_with_both_values_are_compared() -> None:
    found = paired([1.0, None, 1.0, 0.0], [0.0, 0.0, None, 0.0], ["a", "b", "c", "d"])
    assert found is not None
    assert (found.difference, found.rows, found.clusters) == (0.5, 2, 2)
    assert paired([1.0, None], [0.0, 1.0], ["a", "b"]) is None
    assert paired([], [], []) is None
    assert paired([1.0, 1.0], [0.0, 0.0], ["a", "a"]) is None


def test_pairing_by_subject_is_more_careful_than_by_row() -> None:
    first, second = [float((n // 10) % 3 == 0) for n in range(120)], [0.0] * 120
    by_row, by_subject = paired(first, second, range(120)), paired(first, second, [n // 10 for n in range(120)])
    assert by_row is not None
    assert by_subject is not None
    assert by_subject.p > by_row.p
    assert by_subject.high - by_subject.low > by_row.high - by_row.low


def test_rows_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        paired([1.0], [1.0, 0.0], ["a", "b"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_no_finite_number_is_not_left_out_of_an_interval(bad: float) -> None:
    values = [0.5, 1.0, bad, 0.2] * 5
    assert interval(resample_means({"a": values}, range(20))["a"]) is None
    assert paired(values, [0.0] * 20, range(20)) is None
    assert interval(np.array([1.0, 2.0, np.inf])) is None
