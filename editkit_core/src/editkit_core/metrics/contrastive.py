"""CounterFact's metrics: which of two answers is likelier, and by how much.

For an answer y of T tokens, NLL(y|x) = -(1/T) Σ_t log p(y_t | x, y_<t) in nat, and p̄ = exp(-NLL).
Equal likelihoods count as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from editkit_core.metrics.ask import Ask, Forced, ForcedReply, Replies
from editkit_core.metrics.context import MetricContext
from editkit_core.metrics.metric import MetricInfo
from editkit_core.metrics.report import Row
from editkit_core.types import EditRequest

NEIGHBOURS = "neighborhood"
_ROME = "ROME (Meng et al. 2022, arXiv:2202.05262), §3.2 and appendix"


@attrs.frozen
class Pair:
    """A prompt and two answers, of which the first should be likelier."""

    prompt: str
    wanted: str
    other: str


Pairs = Callable[[EditRequest], Iterable[Pair]]
Compare = Callable[[ForcedReply, ForcedReply], float]


@attrs.frozen
class Contrast:
    """Compares the likelihoods of two answers to the same prompts.

    Attributes:
        info: What the metric is.
        pairs: The prompts of a request with their answers.
        compare: Gives the score of (wanted, other).
    """

    info: MetricInfo
    pairs: Pairs
    compare: Compare

    def asks(self, request: EditRequest, context: MetricContext) -> Iterator[Ask]:
        """Ask for both answers of every pair."""
        for pair in self._wanted(request, context):
            yield Forced(pair.prompt, pair.wanted)
            yield Forced(pair.prompt, pair.other)

    def rows(
        self,
        index: int,
        request: EditRequest,
        before: Replies,
        after: Replies,
        context: MetricContext,
    ) -> Iterator[Row]:
        """Give one row a pair."""
        for pair in self._wanted(request, context):
            yield Row(
                request=index,
                metric=self.info.name,
                protocol="tf_contrastive",
                prompt=pair.prompt,
                expected=pair.wanted,
                before=self._score(pair, before),
                after=self._score(pair, after),
                unit=self.info.unit,
            )

    def _wanted(self, request: EditRequest, context: MetricContext) -> Iterable[Pair]:
        return self.pairs(request) if context.wants("tf_contrastive") else ()

    def _score(self, pair: Pair, replies: Replies) -> float:
        wanted = replies.forced(pair.prompt, pair.wanted)
        return self.compare(wanted, replies.forced(pair.prompt, pair.other))


@attrs.frozen
class HarmonicMean:
    """The harmonic mean of other metrics' means; 0 when one of them is 0.

    Attributes:
        info: What the metric is.
        parts: Names of the metrics.
    """

    info: MetricInfo
    parts: tuple[str, ...]

    def combine(self, means: Sequence[float]) -> float:
        """Return n / Σ 1/mean."""
        return len(means) / sum(1 / mean for mean in means) if all(means) else 0.0


def _likelier(wanted: ForcedReply, other: ForcedReply) -> float:
    return float(wanted.mean_nll < other.mean_nll)


def _by_how_much(wanted: ForcedReply, other: ForcedReply) -> float:
    return wanted.probability - other.probability


def _edited(request: EditRequest) -> Iterator[Pair]:
    if request.target_true is not None:
        yield Pair(request.text, request.target_new, request.target_true)


def _rephrased(request: EditRequest) -> Iterator[Pair]:
    if request.target_true is not None:
        for text in request.paraphrase_texts:
            yield Pair(text, request.target_new, request.target_true)


def _neighbours(request: EditRequest) -> Iterator[Pair]:
    for probe in request.locality.get(NEIGHBOURS, ()):
        if probe.target_true is not None:  # a neighbour may have another object than the subject
            yield Pair(probe.prompt, probe.target_true, probe.target_new or request.target_new)


def _info(name: str, title: str, definition: str, *needs: str) -> MetricInfo:
    return MetricInfo(
        name=name,
        title=title,
        protocols=("tf_contrastive",),
        source=_ROME,
        definition=definition,
        needs=needs,
    )


def efficacy_score() -> Contrast:
    """ES: is the new answer likelier than the true one at the edit prompt? Unit: share.

    ES = mean 1[NLL(true) > NLL(new)]. Source: ROME (arXiv:2202.05262), §3.2.
    """
    return Contrast(
        _info(
            "efficacy_score",
            "ES: the new answer is likelier than the true one",
            "1[NLL(true|x_e) > NLL(new|x_e)]",
            "target_true",
        ),
        _edited,
        _likelier,
    )


def efficacy_magnitude() -> Contrast:
    """EM: by how much is the new answer likelier at the edit prompt? Unit: share, -1 to 1.

    EM = mean(p̄(new) - p̄(true)). Source: ROME (arXiv:2202.05262), §3.2.
    """
    return Contrast(
        _info(
            "efficacy_magnitude",
            "EM: how much likelier the new answer is",
            "p̄(new|x_e) - p̄(true|x_e), p̄ = exp(-mean token NLL)",
            "target_true",
        ),
        _edited,
        _by_how_much,
    )


def paraphrase_score() -> Contrast:
    """PS: is the new answer likelier than the true one after paraphrases? Unit: share.

    Source: ROME (arXiv:2202.05262), §3.2.
    """
    return Contrast(
        _info(
            "paraphrase_score",
            "PS: the new answer is likelier after paraphrases",
            "1[NLL(true|x) > NLL(new|x)], x over the paraphrases",
            "target_true",
            "paraphrases",
        ),
        _rephrased,
        _likelier,
    )


def paraphrase_magnitude() -> Contrast:
    """PM: by how much is the new answer likelier after paraphrases? Unit: share, -1 to 1.

    Source: ROME (arXiv:2202.05262), §3.2.
    """
    return Contrast(
        _info(
            "paraphrase_magnitude",
            "PM: how much likelier the new answer is after paraphrases",
            "p̄(new|x) - p̄(true|x), x over the paraphrases",
            "target_true",
            "paraphrases",
        ),
        _rephrased,
        _by_how_much,
    )


def neighborhood_score() -> Contrast:
    """NS: do neighbours keep preferring their true answer? Unit: share.

    NS = mean 1[NLL(true) < NLL(new)]; a ground truth, not the model before the edit, is the
    yardstick. Source: ROME (arXiv:2202.05262), §3.2.
    """
    return Contrast(
        _info(
            "neighborhood_score",
            "NS: neighbours keep preferring their true answer",
            "1[NLL(true|x) < NLL(new|x)], x over the locality probes of type neighborhood",
            "target_true",
            "locality.neighborhood",
        ),
        _neighbours,
        _likelier,
    )


def neighborhood_magnitude() -> Contrast:
    """NM: by how much do neighbours prefer their true answer? Unit: share, -1 to 1.

    Source: ROME (arXiv:2202.05262), §3.2.
    """
    return Contrast(
        _info(
            "neighborhood_magnitude",
            "NM: how much neighbours prefer their true answer",
            "p̄(true|x) - p̄(new|x), x over the locality probes of type neighborhood",
            "target_true",
            "locality.neighborhood",
        ),
        _neighbours,
        _by_how_much,
    )


def counterfact_score() -> HarmonicMean:
    """S: the harmonic mean of the means ES, PS and NS over the data set. Unit: share.

    Source: ROME (arXiv:2202.05262), §3.2.
    """
    return HarmonicMean(
        MetricInfo(
            name="counterfact_score",
            title="S: harmonic mean of ES, PS and NS",
            protocols=("tf_contrastive",),
            source=_ROME,
            definition="3 / (1/ES + 1/PS + 1/NS) of the data set's means; 0 when one is 0",
            needs=("efficacy_score", "paraphrase_score", "neighborhood_score"),
        ),
        ("efficacy_score", "paraphrase_score", "neighborhood_score"),
    )
