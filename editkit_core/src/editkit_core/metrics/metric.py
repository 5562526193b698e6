"""What a metric is: it says what to ask about a request, and turns the replies into rows.

There are three kinds, all registered by name through ``editkit_register_metrics``. A `Metric`
measures each request by asks, which the engine answers together with everybody else's. A
`RunMetric` looks at the whole model instead, for example at a text corpus. A `DerivedMetric` is
computed from the means of others. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import attrs

from editkit_core.errors import BrokenPluginError
from editkit_core.metrics.ask import Ask, Replies
from editkit_core.metrics.report import UNITS, Row, Unit
from editkit_core.metrics.report import Protocol as ProtocolName
from editkit_core.types import EditRequest

if TYPE_CHECKING:
    from editkit_core.metrics.context import MetricContext
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch

__all__ = ["AnyMetric", "DerivedMetric", "Metric", "MetricInfo", "RunMetric"]


@attrs.frozen(kw_only=True)
class MetricInfo:
    """What a metric says about itself.

    Attributes:
        name: Its registered name, which its rows carry.
        title: One line for people.
        unit: Of its scores.
        protocols: How it may measure.
        source: Paper and section or equation it follows.
        definition: The formula, and where it departs from the source.
        higher_is_better: None when neither direction is better in itself.
        needs: What a request or the context must hold for there to be rows.
        ideal: The score of a model that is always right (and, for what should stay, never
            changes), checked by the oracle suite; None when that is no one number.
        worst: The score of a model that is never right; None likewise.
    """

    name: str
    title: str
    unit: Unit = attrs.field(default="share", validator=attrs.validators.in_(UNITS))
    protocols: tuple[ProtocolName, ...]
    source: str
    definition: str
    higher_is_better: bool | None = True
    needs: tuple[str, ...] = ()
    ideal: float | None = 1.0
    worst: float | None = 0.0


@runtime_checkable
class Metric(Protocol):
    """A metric of each request."""

    @property
    def info(self) -> MetricInfo:
        """What it is."""

    def asks(self, request: EditRequest, context: MetricContext) -> Iterable[Ask]:
        """Return what the model is to be asked, before the edit and after it.

        Args:
            request: What was edited; every probe has an answer.
            context: Seed, protocols, and what belongs to the whole run.
        """

    def rows(
        self,
        index: int,
        request: EditRequest,
        before: Replies,
        after: Replies,
        context: MetricContext,
    ) -> Iterable[Row]:
        """Score the replies.

        Args:
            index: The request's number, for its rows.
            request: The request that `asks` was given.
            before: The replies of the model without the edit.
            after: Its replies with the edit.
            context: The same as before.
        """


@runtime_checkable
class RunMetric(Protocol):
    """A metric of the whole model or run."""

    @property
    def info(self) -> MetricInfo:
        """What it is."""

    def measure(
        self, model: EditableModel, patch: Patch | None, context: MetricContext
    ) -> Iterable[Row]:
        """Measure a model before and after a patch.

        Args:
            model: The model without the patch; it is left so.
            patch: What to apply meanwhile; None when there is nothing to apply: the model is
                measured as it is, and before and after are the same.
            context: Text corpora, stages and settings; rows carry ``context.first`` as request.
        """


@runtime_checkable
class DerivedMetric(Protocol):
    """A metric computed from the means of others over all requests."""

    @property
    def info(self) -> MetricInfo:
        """What it is."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the metrics it is computed from."""

    def combine(self, means: Sequence[float]) -> float:
        """Return the score, given the parts' means over all requests in the order of `parts`."""


AnyMetric: TypeAlias = Metric | RunMetric | DerivedMetric


def checked(name: str, made: object) -> AnyMetric:
    """Return what a registered factory made, if it is a metric of that name.

    Raises:
        BrokenPluginError: It is not.
    """
    if not isinstance(made, Metric | RunMetric | DerivedMetric) or not isinstance(
        made.info, MetricInfo
    ):
        raise BrokenPluginError(
            f"What is registered as metric {name!r} makes {made!r:.80}, which has not the members "
            "of a Metric, RunMetric or DerivedMetric. Ask its authors, or leave it out.",
            metric=name,
        )
    if made.info.name != name:
        raise BrokenPluginError(
            f"The metric registered as {name!r} calls itself {made.info.name!r}. They must be "
            "equal: its rows are found by that name.",
            metric=name,
        )
    return made
