"""Metrics of the whole model: perplexity on a text corpus, and what the edit cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import attrs

from editkit_core.errors import CorpusError
from editkit_core.metrics.ask import Ask, Replies, Text
from editkit_core.metrics.context import MetricContext
from editkit_core.metrics.metric import MetricInfo
from editkit_core.metrics.report import Row
from editkit_core.types import EditRequest

if TYPE_CHECKING:
    from editkit_core.efficiency import Stage
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch


@attrs.frozen
class PerplexityDrift:
    """How much less likely does a text corpus become?

    Attributes:
        info: What the metric is.
        max_tokens: Tokens scored of each document.
    """

    info: MetricInfo
    max_tokens: int = 512

    def asks(self, request: EditRequest, context: MetricContext) -> Iterator[Ask]:
        """Ask for the likelihood of every document.

        Raises:
            CorpusError: The context has no corpus.
        """
        return iter(self._texts(context))

    def rows(
        self,
        index: int,
        request: EditRequest,
        before: Replies,
        after: Replies,
        context: MetricContext,
    ) -> Iterator[Row]:
        """Give one row a plan, with its first request: the mean NLL a token, before and after.

        Raises:
            CorpusError: No document has two tokens.
        """
        texts = self._texts(context)
        if index != context.first or context.corpus is None or not texts:
            return
        yield Row(
            request=index,
            metric=self.info.name,
            protocol="text",
            prompt="",
            expected=f"{context.corpus.name or 'corpus'}, {context.corpus.digest[:12]}",
            before=_mean_nll(before, texts),
            after=_mean_nll(after, texts),
            unit=self.info.unit,
            higher_is_better=self.info.higher_is_better,
        )

    def _texts(self, context: MetricContext) -> list[Text]:
        if not context.wants("text"):
            return []
        if context.corpus is None:
            raise CorpusError(
                f"{self.info.name} is measured on a text, and none was given. Give a corpus, or "
                "leave the metric out."
            )
        unique = dict.fromkeys(context.corpus.documents)
        return [Text(document, self.max_tokens) for document in unique]


@attrs.frozen
class StageCost:
    """What each stage of the edit cost.

    Attributes:
        info: What the metric is.
        cost: Reads it off a stage.
    """

    info: MetricInfo
    cost: Callable[[Stage], float]

    def measure(
        self, model: EditableModel, patch: Patch | None, context: MetricContext
    ) -> Iterator[Row]:
        """Give one row a stage; without the edit it costs nothing."""
        for stage in context.stages:
            yield Row(
                request=context.first,
                metric=self.info.name,
                probe=stage.name,
                protocol="run",
                prompt="",
                expected="",
                before=0.0,
                after=float(self.cost(stage)),
                unit=self.info.unit,
                higher_is_better=False,
            )


def _mean_nll(replies: Replies, asks: list[Text]) -> float:
    """Over all tokens of all documents; a document counts by its length."""
    nll = [value for ask in asks for value in replies.scores(ask).nll]
    if not nll:
        raise CorpusError("No document of the corpus has two tokens. Give longer texts.")
    return math.fsum(nll) / len(nll)


def perplexity_drift() -> PerplexityDrift:
    """How much less likely does a text corpus become? Unit: nat a token.

    -(1/N) Σ log p(token | tokens before it in its document) over the N tokens that have one before
    them, the first 512 tokens of each document; perplexity is its exponential, and the drift is
    after minus before. Source: perplexity as usual.
    Differs: ROME's code divides by the number of tokens including the first, which nothing
    predicts.
    """
    return PerplexityDrift(
        MetricInfo(
            name="perplexity_drift",
            title="A text corpus stays as likely as it was",
            unit="nat",
            protocols=("text",),
            source="Perplexity as usual; its drift after edits as in arXiv:2402.09656",
            definition="-(1/N) Σ log p(token | tokens before it); drift is after minus before",
            higher_is_better=False,
            needs=("corpus",),
            ideal=0.0,
            worst=None,
        )
    )


def _efficiency(name: str, title: str, unit: str, cost: Callable[[Stage], float]) -> StageCost:
    return StageCost(
        MetricInfo(
            name=name,
            title=title,
            unit="s" if unit == "s" else "bytes",
            protocols=("run",),
            source="EasyEdit (arXiv:2308.07269), §3: time and VRAM of an edit",
            definition=f"{unit} of each stage; computing key statistics is a stage of its own",
            higher_is_better=False,
            needs=("stages",),
            ideal=None,
            worst=None,
        ),
        cost,
    )


def efficiency_seconds() -> StageCost:
    """How long does an edit take? Unit: seconds of wall-clock time, by stage.

    Source: EasyEdit (arXiv:2308.07269), §3.
    """
    return _efficiency(
        "efficiency_seconds", "Seconds of each stage", "s", lambda stage: stage.wall_s
    )


def efficiency_host_bytes() -> StageCost:
    """How much memory does an edit take? Unit: bytes, the process's peak so far, by stage.

    Source: EasyEdit (arXiv:2308.07269), §3 has VRAM only.
    """
    return _efficiency(
        "efficiency_host_bytes",
        "Peak memory of the process",
        "bytes",
        lambda stage: stage.peak_bytes,
    )


def efficiency_device_bytes() -> StageCost:
    """How much memory of the accelerator does an edit take? Unit: bytes, by stage.

    Source: EasyEdit (arXiv:2308.07269), §3.
    """
    return _efficiency(
        "efficiency_device_bytes",
        "Peak memory of the accelerator",
        "bytes",
        lambda stage: stage.device_peak_bytes,
    )
