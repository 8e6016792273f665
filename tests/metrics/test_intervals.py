"""Bootstrap over clusters."""

import numpy as np
import pytest

from retcon.metrics.intervals import interval, resample_means


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
