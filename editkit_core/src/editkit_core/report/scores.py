"""The means of one stage of a run, with intervals, by metric, probe type and protocol.

What a mean is has one place, as in `metrics.report`: over requests, and within a request over its
probes; protocols are never mixed. Costs (protocol ``run``) are no scores; `report.costs` has them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import attrs
import numpy as np

from editkit_core.metrics.metric import DerivedMetric
from editkit_core.metrics.report import Row
from editkit_core.report.intervals import (
    FloatArray,
    Interval,
    column_intervals,
    combined_interval,
)

__all__ = ["Key", "Score", "ScoreTable", "score_table"]


class Key(NamedTuple):
    """What a mean is of."""

    metric: str
    probe: str
    protocol: str


@attrs.frozen(kw_only=True)
class Score:
    """A mean before and after, with intervals.

    Attributes:
        key: What it is of.
        before: Without the edits.
        after: With them.
        unit: Of both.
        higher_is_better: None when neither direction is better in itself.
    """

    key: Key
    before: Interval
    after: Interval
    unit: str
    higher_is_better: bool | None


@attrs.frozen(kw_only=True, eq=False)
class ScoreTable:
    """One value a request and column: what means and intervals are made of.

    Attributes:
        requests: Numbers of the requests, one a line of the tables.
        keys: What each column is.
        before: (requests, keys), float64; NaN where a request has no such probe.
        after: The same with the edits.
        rows: A row of each column, for what all of its rows share.
    """

    requests: tuple[int, ...]
    keys: tuple[Key, ...]
    before: FloatArray
    after: FloatArray
    rows: tuple[Row, ...] = attrs.field(repr=False)

    def scores(self, derived: Sequence[DerivedMetric] = (), *, seed: int = 0) -> tuple[Score, ...]:
        """Return the mean of each column and of metrics that are computed from several.

        Args:
            derived: One whose parts were not all measured is left out.
            seed: Of the bootstrap.
        """
        if not self.keys:
            return ()
        befores = column_intervals(self.before, seed=seed)
        afters = column_intervals(self.after, seed=seed)
        means = tuple(
            Score(
                key=key,
                before=before,
                after=after,
                unit=row.unit,
                higher_is_better=row.higher_is_better,
            )
            for key, before, after, row in zip(self.keys, befores, afters, self.rows, strict=True)
        )
        return means + tuple(
            self._derived(metric, protocol, columns, seed)
            for metric in derived
            for protocol, columns in self._parts(metric)
        )

    def only(self, requests: Iterable[int]) -> ScoreTable:
        """Return the table of some of the requests; columns without a value are left out."""
        wanted = set(requests)
        lines = [i for i, request in enumerate(self.requests) if request in wanted]
        before, after = self.before[lines], self.after[lines]
        columns = np.flatnonzero(~np.isnan(after).all(axis=0)) if lines else np.array([], int)
        return ScoreTable(
            requests=tuple(self.requests[i] for i in lines),
            keys=tuple(self.keys[i] for i in columns),
            before=before[:, columns],
            after=after[:, columns],
            rows=tuple(self.rows[i] for i in columns),
        )

    def _parts(self, metric: DerivedMetric) -> list[tuple[str, list[int]]]:
        found = []
        for protocol in metric.info.protocols:
            keys = [Key(part, "", protocol) for part in metric.parts]
            if all(key in self.keys for key in keys):
                found.append((str(protocol), [self.keys.index(key) for key in keys]))
        return found

    def _derived(
        self, metric: DerivedMetric, protocol: str, columns: list[int], seed: int
    ) -> Score:
        return Score(
            key=Key(metric.info.name, "", protocol),
            before=combined_interval(self.before[:, columns], metric.combine, seed=seed),
            after=combined_interval(self.after[:, columns], metric.combine, seed=seed),
            unit=metric.info.unit,
            higher_is_better=metric.info.higher_is_better,
        )


def score_table(rows: Iterable[Row], numbers: Mapping[int, int] | None = None) -> ScoreTable:
    """Return the table of some rows; costs are left out.

    Args:
        rows: All of one stage.
        numbers: Other numbers for the requests; those that have none are left out.
    """
    cells: dict[Key, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        request = row.request if numbers is None else numbers.get(row.request)
        if row.protocol != "run" and request is not None:
            cells[Key(row.metric, row.probe, row.protocol)][request].append(row)
    requests = sorted({request for column in cells.values() for request in column})
    line = {request: i for i, request in enumerate(requests)}
    before = np.full((len(requests), len(cells)), np.nan)
    after = before.copy()
    for j, column in enumerate(cells.values()):
        for request, found in column.items():
            before[line[request], j] = fmean(row.before for row in found)
            after[line[request], j] = fmean(row.after for row in found)
    return ScoreTable(
        requests=tuple(requests),
        keys=tuple(cells),
        before=before,
        after=after,
        rows=tuple(next(iter(column.values()))[0] for column in cells.values()),
    )
