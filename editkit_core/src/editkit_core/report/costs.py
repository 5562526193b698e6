"""What the edits of a run cost: seconds by stage of the work, and peak memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import attrs
import numpy as np

from editkit_core.report.runs import ReportedRun

__all__ = ["Costs", "StageCost", "costs_of"]


@attrs.frozen(kw_only=True)
class StageCost:
    """One stage of the work.

    Attributes:
        name: The stage's name.
        units: How many times it was measured.
        median_s: Seconds each time, the median.
        p95_s: Seconds that 95 % of the times stayed below.
        total_s: Seconds of all times together.
    """

    name: str
    units: int
    median_s: float
    p95_s: float
    total_s: float


@attrs.frozen(kw_only=True)
class Costs:
    """The costs of one run.

    Attributes:
        made: Number of edits that were made; one may hold several requests.
        requests: Number of requests in them.
        failed: How often an edit could not be made, by the error's code.
        stages: Seconds by stage, the dearest first.
        host_bytes: Peak memory of the process, by stage.
        device_bytes: Peak memory of the accelerator, by stage; empty without one.
    """

    made: int
    requests: int
    failed: Mapping[str, int]
    stages: tuple[StageCost, ...]
    host_bytes: Mapping[str, float]
    device_bytes: Mapping[str, float]


def costs_of(run: ReportedRun) -> Costs:
    """Return what the edits of a run cost; measuring is a stage of its own."""
    edits = run.edits
    failed = Counter(unit.error.code for unit in run.failed if unit.error is not None)
    return Costs(
        made=len(edits),
        requests=sum(len(unit.indices) for unit in edits),
        failed=dict(sorted(failed.items())),
        stages=_stages(unit.seconds for unit in edits),
        host_bytes=_peaks(unit.peak_bytes for unit in run.run.units),
        device_bytes=_peaks(unit.device_peak_bytes for unit in run.run.units),
    )


def _stages(times: Iterable[Mapping[str, float]]) -> tuple[StageCost, ...]:
    by_name: dict[str, list[float]] = {}
    for seconds in times:
        for name, value in _numbers(seconds).items():
            by_name.setdefault(name, []).append(value)
    found = [
        StageCost(
            name=name,
            units=len(values),
            median_s=float(np.median(values)),
            p95_s=float(np.quantile(values, 0.95)),
            total_s=float(np.sum(values)),
        )
        for name, values in by_name.items()
    ]
    return tuple(sorted(found, key=lambda stage: (-stage.total_s, stage.name)))


def _peaks(peaks: Iterable[Mapping[str, float]]) -> dict[str, float]:
    highest: dict[str, float] = {}
    for by_name in peaks:
        for name, value in _numbers(by_name).items():
            if value > 0:
                highest[name] = max(highest.get(name, 0.0), value)
    return highest


def _numbers(values: object) -> dict[str, float]:
    found = values.items() if isinstance(values, Mapping) else ()
    return {
        str(name): float(value)
        for name, value in found
        if type(value) in (int, float) and np.isfinite(value)
    }
