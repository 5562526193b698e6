"""Key statistics of few tokens, with an estimate of how far off they are.

The tokens are drawn from all over the corpus and summed in two halves of different documents, C_A
and C_B. An edit with key k reads its input along::

    r(C) = C⁻¹ k / (kᵀ C⁻¹ k)      r · k = 1, with the least mean of (r · k')² over other keys k'

Two halves are apart by what each is off by, and the mean of both is off by half of that. So with
m(v) the mean of (v · k')² over keys of documents that neither half has read::

    error = median over k of √(m(½ (r(C_A) - r(C_B))) / m(r(C)))

Because r minimises, error² is also how much more an edit moves other text than it would with
statistics of unlimited text of this kind. For independent normal keys it is d_in / n.

Legend: d_in: width of a key; n: tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from editkit_core.errors import CorpusError, IllConditionedError
from editkit_core.numerics.corpus import Corpus
from editkit_core.numerics.moments import (
    KeyMoments,
    collect_all_moments,
    keys_in_batches,
    moments_keys,
)
from editkit_core.numerics.moments_group import Alone, Group
from editkit_core.numerics.moments_merge import merge_moments, merged_key
from editkit_core.numerics.solve import SpdFactor, factor_spd, solve_spd
from editkit_core.types import Progress, SilentProgress, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.numerics.moments_store import StatisticsStore

QUICK_TOKENS_A_KEY_ENTRY = 20
MIN_QUICK_TOKENS = 10_000
MIN_DOCUMENTS = 10
_HELD_OUT_TOKENS = 1024

__all__ = ["error_note", "quick_moments", "quick_tokens", "split_half_error"]


def quick_tokens(model: EditableModel, sites: Sequence[Site]) -> int:
    """Return how many tokens a quick run reads: 20 for each entry of the widest key."""
    widest = max(int(model.weight(site).shape[1]) for site in sites)
    return max(MIN_QUICK_TOKENS, QUICK_TOKENS_A_KEY_ENTRY * widest)


def quick_moments(
    model: EditableModel,
    sites: Sequence[Site],
    corpus: Corpus,
    *,
    tokens: int | None = None,
    document_tokens: int = 1024,
    batch_size: int = 8,
    seed: int = 0,
    store: StatisticsStore | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    group: Group | None = None,
) -> tuple[KeyMoments, ...]:
    """Sum k kᵀ over few tokens from all over a corpus and estimate how far off the result is.

    Args:
        model: The model; it is only read.
        sites: Where keys are read, in one pass.
        corpus: The documents; a tenth of them is kept for the estimate.
        tokens: Tokens to read; :func:`quick_tokens` by default.
        document_tokens: Cut documents after this many tokens.
        batch_size: Documents in a forward pass.
        seed: Seed of the order that documents are drawn in.
        store: Where a finished result is looked for and saved, if anywhere.
        resume: Whether to use what the store has.
        progress: Told the number of tokens.
        group: The processes that share the documents.

    Returns:
        The statistics, one a site; their ``error`` is None when a half has too few tokens to be
        solved with. Nothing in processes other than the first.

    Raises:
        CorpusError: There are fewer than ten different documents.
        StatisticsError: As :func:`~editkit_core.numerics.moments.collect_all_moments`.
    """
    group = group or Alone()
    tokens = tokens or quick_tokens(model, sites)
    one, other, apart = _split(corpus, seed)
    limit = max(tokens // 2, 1)
    keys = [
        moments_keys(
            model,
            sites,
            half,
            max_tokens=limit,
            document_tokens=document_tokens,
            batch_size=batch_size,
        )
        for half in (one, other)
    ]
    name = f"{corpus.name or 'a corpus'}, quick: {tokens:,} tokens, seed {seed}"
    wanted = [attrs.evolve(merged_key(pair), corpus=name) for pair in zip(*keys, strict=True)]
    looked_up = store if resume and group.rank == 0 else None
    kept = [looked_up.resume(key) if looked_up is not None else None for key in wanted]
    if group.from_first(all(kept)):
        return tuple(moments for moments in kept if moments is not None)
    halves = [
        collect_all_moments(
            model,
            sites,
            half,
            max_tokens=limit,
            document_tokens=document_tokens,
            batch_size=batch_size,
            progress=progress or SilentProgress(),
            group=group,
        )
        for half in (one, other)
    ]
    if group.rank:
        return ()
    rows = [model.encode(text).ids[: keys[0][0].document_tokens] for text in apart]
    held_out = _held_out(model, [site.module for site in sites], rows, batch_size)
    made = []
    for left, right, key, others in zip(*halves, wanted, held_out, strict=True):
        error = split_half_error(left.moment, right.moment, others)
        merged = attrs.evolve(merge_moments([left, right]), key=key, error=error)
        if store is not None:
            store.save(merged)
        made.append(merged)
    return tuple(made)


def split_half_error(one: Tensor, other: Tensor, keys: Tensor) -> float | None:
    """Estimate how far off the mean of two halves' statistics is; see the top of this file.

    Args:
        one: C_A, ``(d_in, d_in)`` float64.
        other: C_B, of about as many tokens.
        keys: Keys of other documents, ``(m, d_in)``; every second one is k, the others are k'.

    Returns:
        The error, or None when a half cannot be solved with.
    """
    asked, seen = keys[::2].double(), keys[1::2].double()  # (m/2, d_in)
    try:
        first, second, both = (
            _readings(factor_spd(matrix), asked) for matrix in (one, other, (one + other) / 2)
        )
    except IllConditionedError:
        return None
    off = (seen @ ((first - second) / 2).T).square().mean(dim=0)  # (m/2, d_in) @ (d_in, m/2)
    whole = (seen @ both.T).square().mean(dim=0)
    return float(f"{float((off / whole).sqrt().median()):.3g}")


def error_note(moments: KeyMoments) -> str:
    """Say in a sentence how far off quick statistics are."""
    if moments.error is None:
        return (
            f"How far off the statistics of layer {moments.key.layer} are cannot be said: half of "
            f"their {moments.count:,} tokens cannot be solved with. Give more tokens."
        )
    return (
        f"Estimated error of layer {moments.key.layer}: {moments.error:.0%} of what unlimited text "
        f"of this kind would give; an edit moves other text {moments.error**2:.1%} more than it "
        "would then."
    )


def _readings(factor: SpdFactor, keys: Tensor) -> Tensor:
    solved = solve_spd(factor, keys.T)  # (d_in, m)
    return (solved / (keys.T * solved).sum(dim=0)).T  # (m, d_in)


def _split(corpus: Corpus, seed: int) -> tuple[Corpus, Corpus, tuple[str, ...]]:
    """Return two halves of a corpus and a tenth for the estimate; no document is in two."""
    different = list(dict.fromkeys(corpus.documents))
    if len(different) < MIN_DOCUMENTS:
        raise CorpusError(
            f"The corpus has {len(different)} different document(s); to estimate the error at "
            f"least {MIN_DOCUMENTS} are needed. Leave out --quick, or give more text."
        )
    random.Random(seed).shuffle(different)
    apart = max(len(different) // 10, 2)
    rest = different[apart:]
    return Corpus.of(rest[::2]), Corpus.of(rest[1::2]), tuple(different[:apart])


def _held_out(
    model: EditableModel,
    modules: Sequence[str],
    rows: Sequence[Sequence[int]],
    batch_size: int,
) -> list[Tensor]:
    """Return keys of some rows at each module, ``(m, d_in)`` float64 on the CPU."""
    found: list[tuple[Tensor, ...]] = []
    few: list[Sequence[int]] = []
    for row in rows:
        few.append(row)
        if sum(map(len, few)) >= _HELD_OUT_TOKENS:
            break
    for block in keys_in_batches(model, modules, [row for row in few if row], batch_size):
        found.append(tuple(keys.to("cpu", torch.float64) for keys in block))
    return [torch.cat(parts)[:_HELD_OUT_TOKENS] for parts in zip(*found, strict=True)]
