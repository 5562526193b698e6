"""Validation: the core's own metrics, teacher-forced, of requests edited one at a time."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import attrs

from editkit_core.metrics.context import MetricContext
from editkit_core.metrics.evaluate import Plan
from editkit_core.metrics.registry import load_metrics
from editkit_core.metrics.report import Report, Row
from editkit_core.types import EditRequest, Progress, SilentProgress

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.training.learner import Learner
    from editkit_core.training.processes import Processes

__all__ = ["SCORE", "Validation", "chosen", "scores"]

METRICS = ("reliability", "generalization", "locality")
SCORE = "score"


class Validation:
    """Measures a learner on requests that it is not trained on.

    Args:
        model: The unedited model; what it says is asked once.
        requests: The requests, at least one.
        processes: Those that share the work.
        progress: Told of every request.
    """

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        processes: Processes,
        progress: Progress | None = None,
    ) -> None:
        self._model = model
        self._processes = processes
        self._progress = progress or SilentProgress()
        self._plan = Plan.make(
            model,
            [attrs.evolve(request, portability={}) for request in requests],
            metrics=load_metrics(METRICS),
            context=MetricContext(protocols=frozenset({"tf_token"})),
        )
        self._before = self._plan.answers(model)

    def measure(self, learner: Learner) -> dict[str, float]:
        """Return the scores with each request edited alone; see `scores`."""
        mine = range(self._processes.rank, len(self._plan.requests), self._processes.size)
        rows: list[Row] = []
        self._progress.start("validating", len(mine))
        try:
            for index in mine:
                rows += self._of(learner, index)
                self._progress.advance()
        finally:
            self._progress.finish()
        return scores(self._processes.gathered(rows))

    def _of(self, learner: Learner, index: int) -> Iterable[Row]:
        request = self._plan.requests[index]
        plan = attrs.evolve(
            self._plan,
            requests=(request,),
            context=attrs.evolve(self._plan.context, first=index),
        )
        with learner.editing((request,)):
            after = plan.answers(self._model)
        return tuple(plan.rows(self._before, after))


def scores(rows: Iterable[Row]) -> dict[str, float]:
    """Return the mean of each metric, of each type of probe, and ``score``, the mean of metrics.

    A metric's mean is over its types of probe, so that none counts more for having more probes.
    """
    ordered = tuple(sorted(rows, key=lambda row: row.request))
    found = Report(ordered).scores()
    by_metric = {
        name: fmean(score.after for score in found if score.metric == name)
        for name in METRICS
        if any(score.metric == name for score in found)
    }
    by_probe = {f"{s.metric}.{s.probe}": s.after for s in found if s.probe}
    return {SCORE: fmean(by_metric.values()), **by_metric, **by_probe}


def chosen(requests: Sequence[EditRequest], limit: int, seed: int) -> tuple[EditRequest, ...]:
    """Return at most ``limit`` of the requests, drawn by seed."""
    if len(requests) <= limit:
        return tuple(requests)
    return tuple(random.Random(f"{seed}\nvalidation").sample(list(requests), limit))
