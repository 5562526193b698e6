"""Adding up key statistics of the same weight, made of different texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import attrs
import torch

from editkit_core.errors import (
    InvalidParameterError,
    StatisticsError,
    StatisticsMismatchError,
    StatisticsOverlapError,
)
from editkit_core.numerics.moments import KeyMoments, MomentsKey
from editkit_core.patch.digests import canonical

__all__ = ["merge_moments", "merged_key"]

_SAME = {
    "inputs_digest": "models (digest of the inputs)",
    "module": "modules",
    "dtype": "floating types",
    "document_tokens": "lengths that documents were cut to",
}


def merge_moments(parts: Sequence[KeyMoments]) -> KeyMoments:
    """Add up statistics; their order does not matter.

    Raises:
        InvalidParameterError: There are fewer than two.
        StatisticsError: One is unfinished.
        StatisticsMismatchError: They are not of the same weight, or were not made alike.
        StatisticsOverlapError: Two were made from the same text.
    """
    key = merged_key([part.key for part in parts])
    for part in parts:
        if not part.complete:
            raise StatisticsError(
                f"The statistics of {part.key.corpus or 'a corpus'} at {part.key.module} are "
                "unfinished. Run their editkit stats to its end first."
            )
    ordered = sorted(parts, key=lambda part: part.key.digest)
    for number, one in enumerate(ordered):
        for other in ordered[number + 1 :]:
            _refuse_overlap(one, other)
    total = ordered[0].total.clone()
    for part in ordered[1:]:
        total += part.total
    known = all(len(part.texts) for part in ordered)
    texts = torch.cat([part.texts for part in ordered]).sort().values
    return KeyMoments(
        key=key,
        total=total,
        count=sum(part.count for part in ordered),
        documents=sum(part.documents for part in ordered),
        complete=True,
        texts=texts if known else texts[:0],
    )


def merged_key(keys: Sequence[MomentsKey]) -> MomentsKey:
    """Return what the sum of statistics with these keys depends on.

    Raises:
        InvalidParameterError: There are fewer than two.
        StatisticsMismatchError: They are not of the same weight, or were not made alike.
        StatisticsOverlapError: Two are equal.
    """
    if len(keys) < 2:
        raise InvalidParameterError("Give at least two statistics to merge.", name="parts")
    first = keys[0]
    for key in keys[1:]:
        for name, what in _SAME.items():
            expected, found = getattr(first, name), getattr(key, name)
            if expected != found:
                raise StatisticsMismatchError(
                    f"Statistics of different {what} cannot be merged: {expected} and {found}.",
                    expected=expected,
                    found=found,
                )
    digests = sorted(key.digest for key in keys)
    if len(set(digests)) < len(digests):
        raise StatisticsOverlapError(
            f"The same statistics (of {first.corpus or 'one corpus'}) were given twice. Give each "
            "once.",
            shared=None,
        )
    parts = {"parts": digests}
    return attrs.evolve(
        first,
        corpus=" + ".join(sorted(key.corpus or "?" for key in keys)),
        corpus_digest=hashlib.sha256(canonical(parts, "merged statistics")).hexdigest(),
        max_tokens=None,
        batch_size=max(key.batch_size for key in keys),
    )


def _refuse_overlap(one: KeyMoments, other: KeyMoments) -> None:
    both = f"{one.key.corpus or 'a corpus'} and {other.key.corpus or 'another'}"
    if one.key.corpus_digest == other.key.corpus_digest:
        raise StatisticsOverlapError(
            f"The statistics of {both} were made from the same corpus, which would count twice. "
            "Merge those of different texts.",
            shared=None,
        )
    shared = int(torch.isin(one.texts, other.texts).sum())
    if shared:
        raise StatisticsOverlapError(
            f"The statistics of {both} share {shared:,} document(s), which would count twice. "
            "Make them from different texts.",
            shared=shared,
        )
