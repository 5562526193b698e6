"""Term weights and the similarity of texts, computed by us.

Words are what stands between spaces and punctuation, in lower case, of two letters or more. The
weight of a word in a text is its count times idf = ln((1 + N) / (1 + df)) + 1, where df is in how
many of the N texts of the stated corpus it stands; words the corpus does not have are left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from editkit_core.numerics.corpus import Corpus

__all__ = ["TfIdf", "terms"]

_WORD = re.compile(r"\w\w+")


@attrs.frozen(kw_only=True)
class TfIdf:
    """Inverse document frequencies.

    Attributes:
        idf: By word.
        n: Number of texts they come from.
        digest: Digest of those texts.
    """

    idf: Mapping[str, float] = attrs.field(eq=False, repr=False)
    n: int
    digest: str

    @classmethod
    def of(cls, corpus: Corpus) -> TfIdf:
        """Count the words of a corpus, a document a text."""
        n = len(corpus.documents)
        df = Counter(word for text in corpus.documents for word in set(terms(text)))
        idf = {word: math.log((1 + n) / (1 + count)) + 1 for word, count in df.items()}
        return cls(idf=idf, n=n, digest=corpus.digest)

    def similarity(self, left: str, right: str) -> float:
        """Return the cosine of two texts' weighted word counts, 0 to 1; 0 when one has no word."""
        a, b = self._weights(left), self._weights(right)
        norms = _squared(a) * _squared(b)
        return math.fsum(a[w] * b[w] for w in a if w in b) / math.sqrt(norms) if norms else 0.0

    def _weights(self, text: str) -> dict[str, float]:
        counts = Counter(word for word in terms(text) if word in self.idf)
        return {word: count * self.idf[word] for word, count in counts.items()}


def terms(text: str) -> list[str]:
    """Return the words of a text as they are compared."""
    return _WORD.findall(text.lower())


def _squared(weights: Mapping[str, float]) -> float:
    return math.fsum(weight * weight for weight in weights.values())
