"""Measuring edits: plan what to ask, ask before and after, score.

The plan depends on the unedited model alone (it fills probes that have no answer with what that
model says), so one plan serves every method, patch and state of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from editkit_core.metrics.ask import Ask, Greedy, Replies
from editkit_core.metrics.context import MetricContext, token_counter
from editkit_core.metrics.engine import answer
from editkit_core.metrics.metric import AnyMetric, DerivedMetric, Metric, RunMetric
from editkit_core.metrics.registry import load_metrics
from editkit_core.metrics.report import Report, Row
from editkit_core.metrics.sampling import reference_weights
from editkit_core.types import EditContext, EditRequest, Probe

if TYPE_CHECKING:
    from editkit_core.metrics.cache import ReplyCache
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch

_UNKNOWN_ANSWER_TOKENS = 16


@attrs.frozen(kw_only=True)
class Plan:
    """What is to be asked about some requests, and how it is scored.

    Attributes:
        requests: The requests, each probe with an answer.
        metrics: The metrics, of all kinds.
        context: What they depend on besides; ``first`` is the number of the first request.
    """

    requests: tuple[EditRequest, ...]
    metrics: tuple[AnyMetric, ...]
    context: MetricContext

    @classmethod
    def make(
        cls,
        model: EditableModel,
        requests: Sequence[EditRequest],
        *,
        metrics: Sequence[AnyMetric] | None = None,
        context: MetricContext | None = None,
        cache: ReplyCache | None = None,
        first: int = 0,
    ) -> Plan:
        """Plan a measurement.

        Args:
            model: The unedited model.
            requests: What was or will be edited.
            metrics: As `load_metrics` makes them; None means the default ones.
            context: Settings; the token counter is set to the model's, and ``requests`` and
                ``tfidf`` are taken from these requests where they are not set.
            cache: Where the unedited model's replies are kept.
            first: Number of the first request.
        """
        context = context or MetricContext()
        filled = with_answers(model, requests, cache=cache)
        everything = context.requests or filled
        tfidf = context.tfidf
        if tfidf is None and any(request.reference_texts for request in everything):
            tfidf = reference_weights(everything)
        return cls(
            requests=filled,
            metrics=tuple(load_metrics() if metrics is None else metrics),
            context=attrs.evolve(
                context,
                count=token_counter(model),
                requests=everything,
                tfidf=tfidf,
                first=first,
            ),
        )

    def asks(self) -> Iterator[Ask]:
        """Yield everything to be asked; equal asks may come again."""
        for request in self.requests:
            for metric in self._of_requests():
                yield from metric.asks(request, self.context)

    def answers(self, model: EditableModel, *, cache: ReplyCache | None = None) -> Replies:
        """Ask a model as it is now; see `engine.answer`."""
        return answer(model, self.asks(), cache=cache, progress=self.context.progress)

    @property
    def first(self) -> int:
        """Number of the first request."""
        return self.context.first

    def rows(self, before: Replies, after: Replies) -> Iterator[Row]:
        """Score replies by every metric of requests.

        Args:
            before: What the unedited model replied.
            after: What the edited model replied.
        """
        for index, request in enumerate(self.requests, self.first):
            for metric in self._of_requests():
                yield from metric.rows(index, request, before, after, self.context)

    def run_rows(
        self, model: EditableModel, patch: Patch | None, *, context: MetricContext | None = None
    ) -> Iterator[Row]:
        """Measure by every metric of whole runs.

        Args:
            model: The model without the patch; it is left so.
            patch: What to apply meanwhile, or None.
            context: Instead of the plan's own, for example with the stages of this edit.
        """
        for metric in self.metrics:
            if isinstance(metric, RunMetric):
                yield from metric.measure(model, patch, context or self.context)

    @property
    def derived(self) -> tuple[DerivedMetric, ...]:
        """The metrics computed from the means of others; see `Report.scores`."""
        return tuple(metric for metric in self.metrics if isinstance(metric, DerivedMetric))

    def _of_requests(self) -> Iterator[Metric]:
        return (metric for metric in self.metrics if isinstance(metric, Metric))


def evaluate_patch(
    model: EditableModel,
    requests: Sequence[EditRequest],
    patch: Patch,
    *,
    context: EditContext | None = None,
    metrics: Sequence[AnyMetric] | None = None,
    measuring: MetricContext | None = None,
    cache: ReplyCache | None = None,
) -> Report:
    """Measure a model before and after a patch.

    Args:
        model: The model without the patch; it is left without it.
        requests: What was edited, with their paraphrases and probes.
        patch: The patch to measure.
        context: Its seed counts for sampling, and progress goes there.
        metrics: Which; reliability, generalization, locality and portability by default.
        measuring: Settings of the metrics.
        cache: Where the unedited model's replies are kept.

    Returns:
        One row a probe and protocol.
    """
    from editkit_core.patch.apply import apply_patch

    context = context or EditContext()
    measuring = measuring or MetricContext(seed=context.seed)
    progress = context.progress
    progress.start("evaluating", 2)
    try:
        plan = Plan.make(model, requests, metrics=metrics, context=measuring, cache=cache)
        before = plan.answers(model, cache=cache)
        progress.advance()
        with apply_patch(model, patch):
            after = plan.answers(model)
        progress.advance()
        of_run = tuple(plan.run_rows(model, patch))
    finally:
        progress.finish()
    return Report((*plan.rows(before, after), *of_run))


def with_answers(
    model: EditableModel, requests: Sequence[EditRequest], *, cache: ReplyCache | None = None
) -> tuple[EditRequest, ...]:
    """Give each probe without an answer what the unedited model says, so that it can be forced."""
    unknown = [
        Greedy(probe.prompt, _UNKNOWN_ANSWER_TOKENS)
        for request in requests
        for probe in _probes(request)
        if not probe.answers
    ]
    if not unknown:
        return tuple(requests)
    said = answer(model, unknown, cache=cache)

    def filled(groups: Mapping[str, tuple[Probe, ...]]) -> dict[str, tuple[Probe, ...]]:
        return {name: tuple(map(fill, probes)) for name, probes in groups.items()}

    def fill(probe: Probe) -> Probe:
        if probe.answers:
            return probe
        text = said.text(Greedy(probe.prompt, _UNKNOWN_ANSWER_TOKENS))
        return attrs.evolve(probe, answers=(text or ".",))

    return tuple(
        attrs.evolve(
            request, locality=filled(request.locality), portability=filled(request.portability)
        )
        for request in requests
    )


def _probes(request: EditRequest) -> Iterable[Probe]:
    for probes in (*request.locality.values(), *request.portability.values()):
        yield from probes
