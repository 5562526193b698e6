"""What a metric may depend on besides the request and the replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import attrs

from editkit_core.metrics.report import Protocol as ProtocolName
from editkit_core.types import EditRequest, Progress, SilentProgress

if TYPE_CHECKING:
    from editkit_core.efficiency import Stage
    from editkit_core.metrics.judge import Judge
    from editkit_core.metrics.tfidf import TfIdf
    from editkit_core.models.editable import EditableModel
    from editkit_core.numerics.corpus import Corpus

_SPARE_TOKENS = 8  # after the longest answer, so that a natural stop is seen


def _words(prompt: str, answer: str) -> int:
    return 4 * len(answer.split())


def _protocols(names: Iterable[ProtocolName]) -> frozenset[ProtocolName]:
    return frozenset(names)


@attrs.frozen(kw_only=True)
class MetricContext:
    """Settings of a measurement, and what belongs to the whole run.

    Attributes:
        seed: Seed of sampled generation.
        protocols: The only ones to measure by; None means all that a metric has.
        judge: Decides ``gen_judge``; None leaves that protocol out.
        requests: Every request of the run, for metrics that compare requests with each other.
        first: Number of the first request, for rows that belong to no single one.
        max_new_tokens: Most tokens of a greedy answer; None means by the longest answer.
        length: Tokens of a sampled text, its prompt included.
        top_k: How many tokens a sampled token is drawn from.
        tfidf: Term weights for generation consistency; None takes them from the reference texts of
            ``requests``.
        corpus: Text that perplexity is measured on.
        tasks: Names of lm-evaluation-harness tasks.
        stages: What the stages of the edit cost.
        count: Number of tokens of an answer after a prompt.
        progress: Where long work reports to.
    """

    seed: int = 0
    protocols: frozenset[ProtocolName] | None = attrs.field(
        default=None, converter=attrs.converters.optional(_protocols)
    )
    judge: Judge | None = None
    requests: tuple[EditRequest, ...] = ()
    first: int = 0
    max_new_tokens: int | None = None
    length: int = 100
    top_k: int = 5
    tfidf: TfIdf | None = None
    corpus: Corpus | None = None
    tasks: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    count: Callable[[str, str], int] = attrs.field(default=_words, eq=False, repr=False)
    progress: Progress = attrs.field(factory=SilentProgress, eq=False, repr=False)

    def wants(self, *protocols: ProtocolName) -> bool:
        """Return whether any of these protocols is to be measured by."""
        asked = set(protocols) if self.protocols is None else self.protocols & set(protocols)
        return bool(asked - ({"gen_judge"} if self.judge is None else set()))

    def budget(self, request: EditRequest) -> int:
        """Return the most tokens of a greedy answer to any probe of a request."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return _SPARE_TOKENS + max(self.count(prompt, new) for prompt, new in _answers(request))


def token_counter(model: EditableModel) -> Callable[[str, str], int]:
    """Return `MetricContext.count` for a model's tokenizer."""
    from editkit_core.metrics.ask import Forced
    from editkit_core.metrics.forcing import forced_row

    @cache
    def count(prompt: str, answer: str) -> int:
        return len(forced_row(model, Forced(prompt, answer)).target)

    return count


def _answers(request: EditRequest) -> Sequence[tuple[str, str]]:
    new = request.target_new
    pairs = [(request.text, new), *((text, new) for text in request.paraphrase_texts)]
    for probes in (*request.locality.values(), *request.portability.values()):
        pairs += [(probe.prompt, probe.answers[0]) for probe in probes if probe.answers]
    return pairs
