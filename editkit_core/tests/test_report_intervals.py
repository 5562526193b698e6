"""Bootstrap intervals against closed forms and known coverage."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from editkit_core.errors import InvalidParameterError
from editkit_core.report.intervals import (
    Interval,
    column_intervals,
    combined_interval,
    mean_interval,
    paired_interval,
    resampled_means,
)


def binomial_quantile(n: int, p: float, level: float) -> int:
    """The smallest k with P(X <= k) >= level, by summing the probabilities."""
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= level:
            return k
    return n


@pytest.mark.parametrize(("n", "right"), [(40, 30), (100, 90), (200, 7)])
def test_of_zeros_and_ones_the_ends_are_the_binomials_quantiles(n: int, right: int) -> None:
    # The sum of n draws with replacement from n values, of which `right` are 1, is binomial.
    found = mean_interval([1.0] * right + [0.0] * (n - right), resamples=40_000)
    assert found.value == right / n
    assert found.low is not None
    assert found.high is not None
    assert abs(found.low * n - binomial_quantile(n, right / n, 0.025)) <= 1 + 1e-9
    assert abs(found.high * n - binomial_quantile(n, right / n, 0.975)) <= 1 + 1e-9


def test_the_spread_of_resampled_means_is_the_population_deviation_over_root_n() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=(80, 1))
    means = resampled_means(values, resamples=40_000)[:, 0]
    assert means.std() == pytest.approx(values.std() / math.sqrt(80), rel=0.02)
    assert means.mean() == pytest.approx(values.mean(), abs=4 * means.std() / math.sqrt(40_000))


def test_of_many_values_the_interval_is_the_normal_one() -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, size=400)
    found = mean_interval(values, resamples=40_000)
    half = 1.959964 * statistics.pstdev(values.tolist()) / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.03 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03 * half)


def test_95_percent_intervals_hold_the_true_mean_95_percent_of_the_time() -> None:
    draws = np.random.default_rng(3).normal(0.0, 1.0, size=(60, 2000))
    # All columns share the draws of requests, and yet each is an experiment of its own.
    intervals = column_intervals(draws, resamples=800)
    held = [one.low <= 0.0 <= one.high for one in intervals if one.low is not None and one.high]
    # Of 2000 the deviation is half a per cent; a percentile interval of 60 is a little short.
    assert 0.925 <= statistics.fmean(held) <= 0.96


def test_a_paired_interval_holds_the_true_difference_and_is_narrower_than_an_unpaired_one() -> None:
    generator = np.random.default_rng(4)
    hardness = generator.normal(0.0, 3.0, size=200)
    first = hardness + generator.normal(0.0, 0.3, size=200)
    second = hardness + 0.5 + generator.normal(0.0, 0.3, size=200)
    found = paired_interval(first, second)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.5 < found.high
    assert found.excludes_zero
    alone = mean_interval(first)
    assert alone.low is not None
    assert alone.high is not None
    assert found.high - found.low < 0.3 * (alone.high - alone.low)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    values = list(np.random.default_rng(5).random(50))
    assert mean_interval(values, seed=7) == mean_interval(values, seed=7)
    assert mean_interval(values, seed=7) != mean_interval(values, seed=8)


def test_many_requests_are_drawn_some_resamples_at_a_time_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = np.random.default_rng(6).random((30, 2))
    at_once = resampled_means(table, resamples=50, seed=1)
    monkeypatch.setattr("editkit_core.report.intervals._CELLS_AT_ONCE", 64)
    assert np.array_equal(resampled_means(table, resamples=50, seed=1), at_once)


def test_a_value_that_is_missing_counts_neither_as_zero_nor_in_n() -> None:
    table = np.array([[1.0, 0.0], [1.0, np.nan], [1.0, 1.0], [1.0, np.nan]])
    first, second = column_intervals(table)
    assert (first.value, first.n) == (1.0, 4)
    assert (second.value, second.n) == (0.5, 2)
    assert (second.low, second.high) == (0.0, 1.0)


def test_one_request_has_no_interval() -> None:
    assert mean_interval([0.3]) == Interval(value=0.3, low=None, high=None, n=1)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_requests_that_all_score_the_same_give_a_flat_interval(value: float) -> None:
    found = mean_interval([value] * 37)
    assert found.is_flat
    assert found.low == found.value


def test_a_combined_score_is_drawn_jointly() -> None:
    generator = np.random.default_rng(8)
    first = generator.random(100)
    table = np.stack((first, 1 - first), axis=1)
    # The two means always add up to 1, so their sum has no spread: only joint draws show that.
    found = combined_interval(table, sum)
    assert found.value == pytest.approx(1.0)
    assert found.low == pytest.approx(1.0)
    assert found.high == pytest.approx(1.0)


def test_a_combined_score_of_one_part_is_that_parts_interval() -> None:
    table = np.random.default_rng(9).random((60, 1))
    assert combined_interval(table, lambda means: means[0]) == column_intervals(table)[0]


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [math.inf]])
def test_values_without_a_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(InvalidParameterError):
        mean_interval(values)


def test_pairs_of_different_length_are_refused() -> None:
    with pytest.raises(InvalidParameterError, match="2 and 3"):
        paired_interval([0.0, 1.0], [0.0, 1.0, 2.0])


def test_a_level_outside_0_and_1_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="95"):
        mean_interval([0.0, 1.0], level=95)
