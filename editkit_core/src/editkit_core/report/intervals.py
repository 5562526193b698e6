"""Bootstrap intervals over requests: seeded, vectorised, all columns of a table at once.

A request is drawn whole: in one resample every column sees the same requests. So intervals of
metrics that are computed from several others (a harmonic mean of three, say) and of paired
differences come from the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from editkit_core.errors import InvalidParameterError

__all__ = [
    "Interval",
    "column_intervals",
    "combined_interval",
    "mean_interval",
    "paired_interval",
    "resampled_means",
]

FloatArray: TypeAlias = npt.NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 5000
_CELLS_AT_ONCE = 1 << 22


@attrs.frozen(kw_only=True)
class Interval:
    """A mean over requests and how sure it is.

    Attributes:
        value: The mean.
        low: Lower end of the percentile interval; None with fewer than two requests.
        high: Upper end; None likewise.
        n: Number of requests.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def is_flat(self) -> bool:
        """Whether all requests scored the same, so that no resample can differ.

        Such an interval has no width and says nothing about requests that were not drawn: of n
        equal ones, up to 3/n of all others may still differ (the rule of three, at 95 %).
        """
        return self.n > 1 and self.low == self.high

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside, as it does for a difference that is not chance."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_interval(
    values: Sequence[float] | FloatArray,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean of one value a request, with its bootstrap interval.

    Args:
        values: (n,), finite.
        level: Share of the resampled means between the ends.
        resamples: How many times n requests are drawn with replacement.
        seed: Of the draws.

    Raises:
        InvalidParameterError: There are no values, or one is not finite.
    """
    column = np.asarray(values, np.float64).reshape(-1, 1)
    _check_finite(column)
    return column_intervals(column, level=level, resamples=resamples, seed=seed)[0]


def paired_interval(
    first: Sequence[float] | FloatArray,
    second: Sequence[float] | FloatArray,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean of second - first over requests that both have, with its interval.

    Args:
        first: (n,), one value a request.
        second: (n,), of the same requests in the same order.
        level: As in `mean_interval`.
        resamples: As in `mean_interval`.
        seed: As in `mean_interval`.

    Raises:
        InvalidParameterError: They are of different length, empty, or not finite.
    """
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != two.shape:
        raise InvalidParameterError(
            f"Paired values must be of the same requests, and there are {one.size} and {two.size}. "
            "Keep those that both have.",
        )
    return mean_interval(two - one, level=level, resamples=resamples, seed=seed)


def column_intervals(
    table: FloatArray, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval]:
    """Return the mean and interval of every column.

    Args:
        table: (n, k), float64, one row a request; NaN where a request has no such value. Every
            column has at least one value.
        level: As in `mean_interval`.
        resamples: As in `mean_interval`.
        seed: As in `mean_interval`.
    """
    means = resampled_means(table, resamples=resamples, seed=seed)
    counts = (~np.isnan(table)).sum(axis=0)
    values = np.nansum(table, axis=0) / counts
    return [
        _interval(float(value), draws, int(n), level)
        for value, draws, n in zip(values, means.T, counts, strict=True)
    ]


def combined_interval(
    table: FloatArray,
    combine: Callable[[Sequence[float]], float],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a function of the columns' means, with its interval.

    Args:
        table: (n, k) as in `column_intervals`.
        combine: Computes the score from the k means, for example their harmonic mean.
        level: As in `mean_interval`.
        resamples: As in `mean_interval`.
        seed: As in `mean_interval`.
    """
    present = ~np.isnan(table)
    counts = present.sum(axis=0)
    value = combine(list(map(float, np.nansum(table, axis=0) / counts)))
    means = resampled_means(table, resamples=resamples, seed=seed)
    means = means[~np.isnan(means).any(axis=1)]
    draws = np.array([combine(row) for row in means.tolist()], np.float64)
    return _interval(value, draws, int(counts.min()), level)


def resampled_means(table: FloatArray, *, resamples: int = RESAMPLES, seed: int = 0) -> FloatArray:
    """Return the means of every column in each resample.

    Args:
        table: (n, k), float64, one row a request; NaN where a request has no such value.
        resamples: How many times n requests are drawn with replacement.
        seed: Of the draws; equal seeds and n give equal draws.

    Returns:
        (resamples, k), float64; NaN where a resample holds no value of a column.

    Raises:
        InvalidParameterError: The table has no rows, or resamples is not positive.
    """
    if table.shape[0] == 0 or resamples < 1:
        raise InvalidParameterError(
            f"A bootstrap needs requests and resamples, and got {table.shape[0]} and {resamples}."
        )
    present = ~np.isnan(table)
    filled = np.where(present, table, 0.0)
    generator = np.random.default_rng(seed)
    pieces = []
    for counts in _drawn(generator, table.shape[0], resamples):
        weights = counts @ present  # (c, n) @ (n, k), whole numbers
        # A matrix product may round a row by how many others there are; this adds in one order.
        sums = np.einsum("cn,nk->ck", counts, filled)
        with np.errstate(invalid="ignore"):
            pieces.append(np.where(weights > 0, sums / weights, np.nan))
    return np.concatenate(pieces)


def _drawn(generator: np.random.Generator, n: int, resamples: int) -> Iterator[FloatArray]:
    """Yield how often each request was drawn, (c, n), some resamples at a time."""
    at_once = max(1, _CELLS_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = generator.integers(0, n, size=(size, n))
        drawn += np.arange(size)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n)
        yield counts.reshape(size, n).astype(np.float64)


def _interval(value: float, draws: FloatArray, n: int, level: float) -> Interval:
    if not 0 < level < 1:
        raise InvalidParameterError(f"A level must lie between 0 and 1, got {level}. Try 0.95.")
    draws = draws[~np.isnan(draws)]
    if n < 2 or not draws.size:
        return Interval(value=value, low=None, high=None, n=n)
    tail = (1 - level) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    # Sums in another order may differ in the last bit; equal values must give a flat interval.
    if np.isclose(low, high, rtol=1e-12, atol=0) and np.isclose(low, value, rtol=1e-12, atol=0):
        low = high = value
    return Interval(value=value, low=float(low), high=float(high), n=n)


def _check_finite(table: FloatArray) -> None:
    if not table.size or not np.isfinite(table).all():
        raise InvalidParameterError(
            "A mean needs at least one value, and all of them finite. Leave out what has none."
        )
