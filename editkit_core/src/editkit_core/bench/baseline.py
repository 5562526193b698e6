"""The unedited model's replies to everything a run asks: computed once, kept in a cache.

Runs of several methods on one model share the cache: whoever comes first asks, the others wait and
read. A request that cannot be asked at all (a prompt longer than the context, say) is set aside
with its error; the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import filelock

from editkit_core.errors import RequestError
from editkit_core.metrics.ask import Ask, Replies, Reply
from editkit_core.metrics.metric import Metric
from editkit_core.metrics.report import Row
from editkit_core.types import EditRequest, Progress

if TYPE_CHECKING:
    from editkit_core.metrics.cache import ReplyCache
    from editkit_core.metrics.context import MetricContext
    from editkit_core.metrics.metric import AnyMetric
    from editkit_core.models.editable import EditableModel

__all__ = ["Baseline"]

ASKED_TOGETHER = 100  # requests; what a stop in the middle costs


@attrs.frozen(kw_only=True, eq=False)
class Baseline:
    """What is asked about every request, and what the unedited model replied.

    Attributes:
        requests: The requests, each probe with an answer.
        metrics: The metrics that measure requests.
        context: Their settings.
        before: The replies.
        failures: Why a request cannot be asked, by its number.
        rows: Most rows a forward pass.
    """

    requests: tuple[EditRequest, ...]
    metrics: tuple[Metric, ...]
    context: MetricContext
    before: Replies
    failures: dict[int, RequestError]
    rows: int

    @classmethod
    def ask(
        cls,
        model: EditableModel,
        requests: Sequence[EditRequest],
        *,
        metrics: Sequence[AnyMetric],
        context: MetricContext,
        folder: Path | None,
        fingerprint: str,
        rows: int,
        progress: Progress,
    ) -> Baseline:
        """Ask the unedited model.

        Args:
            model: The unedited model.
            requests: All requests of the run.
            metrics: What to measure.
            context: Settings; its requests and token counter are set here.
            folder: Where replies are kept between runs; None keeps them in memory.
            fingerprint: The model's, to lock its replies by.
            rows: Most rows a forward pass.
            progress: Told of the requests.
        """
        from editkit_core.metrics.cache import ReplyCache

        if folder is None:
            return _ask(model, requests, metrics, context, ReplyCache(), rows, progress)
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{fingerprint[:32]}.lock"):
            cache = ReplyCache(folder)  # inside, so that it sees what the others wrote
            return _ask(model, requests, metrics, context, cache, rows, progress)

    def measure(self, model: EditableModel, indices: Sequence[int], first: int) -> tuple[Row, ...]:
        """Ask the edited model about some requests, and score.

        Args:
            model: The edited model.
            indices: The requests' numbers.
            first: Number of the request that rows of the whole stage belong to.
        """
        from editkit_core.metrics.engine import answer

        asks = [ask for index in indices for ask in self._asks(index, first)]
        after = answer(model, asks, rows=self.rows)
        context = attrs.evolve(self.context, first=first)
        return tuple(
            row
            for index in indices
            for metric in self.metrics
            for row in metric.rows(index, self.requests[index], self.before, after, context)
        )

    def _asks(self, index: int, first: int) -> Iterator[Ask]:
        context = attrs.evolve(self.context, first=first)
        for metric in self.metrics:
            yield from metric.asks(self.requests[index], context)

    def _ask_about(
        self, model: EditableModel, indices: Sequence[int], cache: ReplyCache
    ) -> Iterator[Replies]:
        """Yield the replies about some requests; one that cannot be asked is set aside."""
        from editkit_core.metrics.engine import answer

        try:
            # As if each began a stage, so that what belongs to a stage is asked too.
            asks = [ask for index in indices for ask in self._asks(index, index)]
            yield answer(model, asks, cache=cache, rows=self.rows)
        except RequestError as error:
            if len(indices) == 1:
                self.failures[indices[0]] = error
                return
            for index in indices:
                yield from self._ask_about(model, [index], cache)


def _ask(
    model: EditableModel,
    requests: Sequence[EditRequest],
    metrics: Sequence[AnyMetric],
    context: MetricContext,
    cache: ReplyCache,
    rows: int,
    progress: Progress,
) -> Baseline:
    from editkit_core.metrics.evaluate import Plan as Measurement

    failures: dict[int, RequestError] = {}
    filled = _filled(model, requests, cache, failures)
    plan = Measurement.make(
        model, filled, metrics=metrics, context=attrs.evolve(context, requests=filled), cache=cache
    )
    before: dict[Ask, Reply] = {}
    made = Baseline(
        requests=filled,
        metrics=tuple(metric for metric in metrics if isinstance(metric, Metric)),
        context=plan.context,
        before=Replies({}),
        failures=failures,
        rows=rows,
    )
    progress.start("asking the unedited model", len(requests))
    try:
        for part in _parts(len(requests)):
            usable = [i for i in part if i not in failures]
            for some in made._ask_about(model, usable, cache):
                before.update(some)
            progress.advance(len(part))
    finally:
        progress.finish()
    return attrs.evolve(made, before=Replies(before))


def _filled(
    model: EditableModel,
    requests: Sequence[EditRequest],
    cache: ReplyCache,
    failures: dict[int, RequestError],
) -> tuple[EditRequest, ...]:
    """Give probes without an answer what the unedited model says."""
    from editkit_core.metrics.evaluate import with_answers

    filled = list(requests)
    for part in _parts(len(requests)):
        try:
            filled[part.start : part.stop] = with_answers(
                model, [requests[i] for i in part], cache=cache
            )
        except RequestError:
            for i in part:
                try:
                    (filled[i],) = with_answers(model, [requests[i]], cache=cache)
                except RequestError as error:
                    failures[i] = error
                    filled[i] = attrs.evolve(requests[i], locality={}, portability={})
    return tuple(filled)


def _parts(count: int) -> list[range]:
    return [range(i, min(i + ASKED_TOGETHER, count)) for i in range(0, count, ASKED_TOGETHER)]
