"""What a run comes to: means with intervals by stage, failures, and what it cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from editkit_core.bench.reading import Run
from editkit_core.bench.scenario import AFTER_EDIT
from editkit_core.report.intervals import RESAMPLES, column_intervals, combined_interval

if TYPE_CHECKING:
    from editkit_core.metrics.metric import DerivedMetric
    from editkit_core.report.intervals import FloatArray, Interval

__all__ = ["SPEC", "summarise"]

SPEC = "editkit.summary/1"
_Key = tuple[str, str, str]
_ENDS = ("before", "after")


def summarise(run: Run, derived: Sequence[DerivedMetric] = ()) -> dict[str, Any]:
    """Return a run's summary as plain JSON values.

    Args:
        run: A run.
        derived: Metrics computed from the means of others.
    """
    made = list(run.of_stage(AFTER_EDIT))
    failed = [unit for unit in made if unit.error is not None]
    return {
        "spec": SPEC,
        "plan_digest": run.meta.get("plan_digest"),
        "finished": run.finished,
        "edits": len(made),
        "failed": len(failed),
        "failures": dict(Counter(unit.error.code for unit in failed if unit.error)),
        "median_seconds": _by_name([unit.seconds for unit in made if not unit.error], median),
        "peak_bytes": _by_name([unit.peak_bytes for unit in run.units], max),
        "device_peak_bytes": _by_name([unit.device_peak_bytes for unit in run.units], max),
        "conflicts": _conflicts(run),
        "resamples": RESAMPLES,
        "scores": [plain for stage in run.stages for plain in _scores(run, stage, derived)],
    }


def _scores(run: Run, stage: str, derived: Sequence[DerivedMetric]) -> list[dict[str, Any]]:
    """The means of a stage with their intervals, as plain JSON values."""
    seed = int(run.meta.get("plan", {}).get("seed", 0))
    tables = [_Table(run, stage, end, seed) for end in _ENDS]
    by_name = {metric.info.name: metric for metric in derived}
    plains = []
    for score in run.scores(stage, derived):
        plain = {"stage": stage, **attrs.asdict(score)}
        for end, table in zip(_ENDS, tables, strict=True):
            found = (
                table.combined(by_name[score.metric], score.protocol)
                if score.metric in by_name
                else table.intervals[score.metric, score.probe, score.protocol]
            )
            plain[f"{end}_interval"] = None if found.low is None else [found.low, found.high]
        plains.append(plain)
    return plains


class _Table:
    """One row a request, one column a mean: what the bootstrap draws from."""

    def __init__(self, run: Run, stage: str, end: str, seed: int) -> None:
        cells: dict[_Key, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in run.rows(stage):
            cells[row.metric, row.probe, row.protocol][row.request].append(getattr(row, end))
        requests = sorted({request for column in cells.values() for request in column})
        self.columns: dict[_Key, list[float]] = {
            key: [fmean(column[r]) if r in column else float("nan") for r in requests]
            for key, column in cells.items()
        }
        self.seed = seed
        found = column_intervals(self._of(list(cells)), seed=seed) if cells else []
        self.intervals = dict(zip(cells, found, strict=True))

    def combined(self, metric: DerivedMetric, protocol: str) -> Interval:
        """Return the interval of a metric that is computed from others."""
        keys = [(part, "", protocol) for part in metric.parts]
        return combined_interval(self._of(keys), metric.combine, seed=self.seed)

    def _of(self, keys: Sequence[_Key]) -> FloatArray:
        return np.array([self.columns[key] for key in keys], np.float64).T


def _by_name(costs: Sequence[Mapping[str, Any]], combine: Any) -> dict[str, float]:  # Any: numbers
    names = dict.fromkeys(name for cost in costs for name in cost)
    return {name: combine([cost[name] for cost in costs if name in cost]) for name in names}


def _conflicts(run: Run) -> dict[str, int]:
    """How many conflicts of each kind there were with all patches on the model."""
    last = [unit.conflicts for unit in run.units if unit.conflicts is not None]
    return dict(last[-1]["counts"]) if last else {}
