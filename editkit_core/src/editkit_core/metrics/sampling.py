"""Metrics of freely sampled text: does it repeat itself, and does it speak of the new fact?

Papers sample without a seed. Here each text has a seed of its own, taken from the context's and
from what is asked, so before and after an edit draw the same random numbers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import attrs

from editkit_core.metrics.ask import Ask, Replies, Sampled
from editkit_core.metrics.context import MetricContext
from editkit_core.metrics.metric import MetricInfo
from editkit_core.metrics.report import Row
from editkit_core.metrics.tfidf import TfIdf
from editkit_core.types import EditRequest

_TOKEN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # by n of the n-grams
_ROME = "ROME (Meng et al. 2022, arXiv:2202.05262), appendix on generation metrics"


@attrs.frozen
class Fluency:
    """How varied are sampled texts?

    Attributes:
        info: What the metric is.
    """

    info: MetricInfo

    def asks(self, request: EditRequest, context: MetricContext) -> Iterator[Ask]:
        """Ask for one sampled text a prompt."""
        return iter(_sampled(request, context))

    def rows(
        self,
        index: int,
        request: EditRequest,
        before: Replies,
        after: Replies,
        context: MetricContext,
    ) -> Iterator[Row]:
        """Give one row a prompt."""
        for ask in _sampled(request, context):
            texts = [_whole(ask, replies) for replies in (before, after)]
            yield Row(
                request=index,
                metric=self.info.name,
                protocol="gen_sample",
                prompt=ask.prompt,
                expected="",
                before=ngram_entropy(texts[0]),
                after=ngram_entropy(texts[1]),
                text_before=before.text(ask),
                text_after=after.text(ask),
                unit=self.info.unit,
                higher_is_better=self.info.higher_is_better,
            )


@attrs.frozen
class Consistency:
    """Do sampled texts use the words of texts about the new answer?

    Attributes:
        info: What the metric is.
    """

    info: MetricInfo

    def asks(self, request: EditRequest, context: MetricContext) -> Iterator[Ask]:
        """Ask for one sampled text a prompt, where there is something to compare with."""
        return iter(self._sampled(request, context))

    def rows(
        self,
        index: int,
        request: EditRequest,
        before: Replies,
        after: Replies,
        context: MetricContext,
    ) -> Iterator[Row]:
        """Give one row a request."""
        asks = self._sampled(request, context)
        if not asks:
            return
        tfidf = context.tfidf or reference_weights(context.requests or (request,))
        references = " ".join(request.reference_texts)
        said = [" ".join(_whole(ask, replies) for ask in asks) for replies in (before, after)]
        yield Row(
            request=index,
            metric=self.info.name,
            protocol="gen_sample",
            prompt=asks[0].prompt,
            expected=f"TF-IDF of {tfidf.n} texts, {tfidf.digest[:12]}",
            before=tfidf.similarity(said[0], references),
            after=tfidf.similarity(said[1], references),
            text_before=said[0],
            text_after=said[1],
        )

    def _sampled(self, request: EditRequest, context: MetricContext) -> list[Sampled]:
        return _sampled(request, context) if request.reference_texts else []


def ngram_entropy(text: str) -> float:
    """Return the weighted entropy of a text's word n-grams, bits.

    H = (1/2) Σ_{n ∈ {2, 3}} w_n H_n with w_2 = 2/3, w_3 = 4/3 and H_n = -Σ p log2 p over the
    frequencies p of its n-grams; a text without an n-gram has H_n = 0. Words are runs of letters
    and digits; each punctuation mark is a word of its own.
    """
    words = _TOKEN.findall(text)
    weighted = (weight * _entropy(words, n) for n, weight in _WEIGHTS.items())
    return math.fsum(weighted) / len(_WEIGHTS)


def reference_weights(requests: Sequence[EditRequest]) -> TfIdf:
    """Return the term weights of all reference texts of some requests.

    Raises:
        CorpusError: None of them has a reference text.
    """
    from editkit_core.numerics.corpus import Corpus

    texts = dict.fromkeys(text for request in requests for text in request.reference_texts)
    return TfIdf.of(Corpus.of(texts, "reference texts of the requests"))


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return -math.fsum(c / total * math.log2(c / total) for c in counts.values()) + 0.0


def _sampled(request: EditRequest, context: MetricContext) -> list[Sampled]:
    if not context.wants("gen_sample"):
        return []
    prompts = request.generation_texts or (request.text,)
    return [
        Sampled(prompt, length=context.length, top_k=context.top_k, seed=context.seed)
        for prompt in dict.fromkeys(prompts)
    ]


def _whole(ask: Sampled, replies: Replies) -> str:
    """The prompt with its continuation, as the papers score it."""
    return ask.prompt + replies.text(ask)


def fluency() -> Fluency:
    """Is sampled text varied, or does it repeat itself? Unit: bits; papers report it times 100.

    GE = `ngram_entropy` of prompt and continuation, 100 tokens together, top-k 5; about 6 is
    healthy, 3 to 4 is repetition. Source: ROME (arXiv:2202.05262); EasyEdit asks the edit prompt,
    CounterFact its generation prompts: ours asks the latter where the request has them.
    Differs: seeded; words by our own rule instead of NLTK's.
    """
    return Fluency(
        MetricInfo(
            name="fluency",
            title="GE: n-gram entropy of sampled text",
            unit="bits",
            protocols=("gen_sample",),
            source=_ROME,
            definition=(
                "(1/2) Σ_{n=2,3} w_n H_n, w_2 = 2/3, w_3 = 4/3, H_n = -Σ p log2 p over word "
                "n-grams of prompt and continuation"
            ),
            ideal=None,
            worst=None,
        )
    )


def generation_consistency() -> Consistency:
    """Does sampled text use the words of texts about the new answer? Unit: share.

    RS = cosine of the TF-IDF vectors of all generations joined and all reference texts joined;
    papers report it times 100. Source: ROME (arXiv:2202.05262).
    Differs: vocabulary and idf come from a corpus that each row names by its digest, by default
    all reference texts of the run; the authors' come from a file of theirs.
    """
    return Consistency(
        MetricInfo(
            name="generation_consistency",
            title="RS: sampled text resembles texts about the new answer",
            protocols=("gen_sample",),
            source=_ROME,
            definition="cos(TF-IDF(generations joined), TF-IDF(reference texts joined))",
            needs=("reference_texts",),
        )
    )
