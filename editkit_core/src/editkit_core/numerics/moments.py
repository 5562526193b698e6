"""Key statistics: the second moment C = E[k kᵀ] of the inputs of an edited weight.

Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 3.1 and
    appendix E.1; there the keys are those of Wikipedia text.
Differs: Summed in float64 over real tokens by the attention mask; keyed by what the keys depend on
    instead of the model's name; an interrupted run goes on where it was, with the same bits.

Legend: d_in: width of a key; n: number of tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from editkit_core.errors import IllConditionedError, InvalidParameterError, NonFiniteEditError
from editkit_core.models.text import pad_batch
from editkit_core.models.trace import record
from editkit_core.numerics.inputs_digest import inputs_digest
from editkit_core.numerics.solve import factor_spd
from editkit_core.patch.digests import canonical
from editkit_core.types import Progress, SilentProgress, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.numerics.corpus import Corpus
    from editkit_core.numerics.moments_store import StatisticsStore

__all__ = ["KeyMoments", "MomentsKey", "collect_moments", "quality_warning"]

ENOUGH_TOKENS_A_KEY_ENTRY = 10
_BATCHES_A_CHUNK = 16


@attrs.frozen(kw_only=True)
class MomentsKey:
    """What key statistics depend on; two with equal keys have equal bits.

    Attributes:
        inputs_digest: Digest of everything in the model that a key depends on.
        module: Module whose inputs are the keys.
        layer: Its block number.
        model: The model's name; for people, not compared.
        dtype: Floating type the model computed in.
        corpus: What the corpus is called; for people, not compared.
        corpus_digest: Digest of the documents.
        max_tokens: Tokens asked for, or None for the whole corpus.
        document_tokens: Tokens after which a document is cut.
        batch_size: Documents in a forward pass; decides the order of float64 additions.
    """

    inputs_digest: str
    module: str
    layer: int
    model: str = attrs.field(eq=False)
    dtype: str
    corpus: str = attrs.field(default="", eq=False)
    corpus_digest: str
    max_tokens: int | None
    document_tokens: int
    batch_size: int

    @property
    def digest(self) -> str:
        """SHA-256 of the compared fields."""
        compared = [field.name for field in attrs.fields(MomentsKey) if field.eq]
        fields = {name: getattr(self, name) for name in compared}
        return hashlib.sha256(canonical(fields, "statistics key")).hexdigest()


@attrs.frozen(kw_only=True, eq=False)
class KeyMoments:
    """The second moment of keys, finished or under way.

    Attributes:
        key: What it depends on.
        total: Σ k kᵀ, ``(d_in, d_in)`` float64 on the CPU.
        count: Number n of keys summed.
        documents: Number of documents read; less than all when a run was interrupted.
        complete: Whether the run reached its end.
    """

    key: MomentsKey
    total: Tensor
    count: int
    documents: int
    complete: bool

    @property
    def moment(self) -> Tensor:
        """C = E[k kᵀ], ``(d_in, d_in)`` float64 on the CPU."""
        return self.total / max(self.count, 1)


def collect_moments(
    model: EditableModel,
    site: Site,
    corpus: Corpus,
    *,
    max_tokens: int | None = None,
    document_tokens: int = 1024,
    batch_size: int = 8,
    store: StatisticsStore | None = None,
    save_every: int = 1000,
    resume: bool = True,
    progress: Progress | None = None,
) -> KeyMoments:
    """Sum k kᵀ over the tokens of a corpus, running the model up to the site only.

    Args:
        model: The model; it is only read.
        site: Where the keys are read; all tokens count, ``site.token`` plays no part.
        corpus: The documents, each cut to the model's context.
        max_tokens: Stop after this many tokens, exactly; None reads the whole corpus.
        document_tokens: Cut documents after this many tokens, if the context is not shorter.
        batch_size: Documents in a forward pass.
        store: Where to look for a finished or partial result first and to save to, if anywhere.
        save_every: Documents between two partial saves.
        resume: Whether to use what the store has; otherwise it is made anew.
        progress: Told the number of tokens.

    Returns:
        The finished statistics; after an interruption and a second call with the same bits as
        without one.

    Raises:
        InvalidParameterError: A number is below 1.
        NonFiniteEditError: A key is not finite.
        StatisticsError: The store holds a damaged file.
    """
    for name, value in (
        ("max_tokens", max_tokens),
        ("document_tokens", document_tokens),
        ("batch_size", batch_size),
        ("save_every", save_every),
    ):
        if value is not None and value < 1:
            raise InvalidParameterError(f"{name} is {value}; it must be at least 1.", name=name)
    key = MomentsKey(
        inputs_digest=inputs_digest(model, site),
        module=site.module,
        layer=site.layer,
        model=model.name,
        dtype=str(model.dtype).removeprefix("torch."),
        corpus=corpus.name,
        corpus_digest=corpus.digest,
        max_tokens=max_tokens,
        document_tokens=min(document_tokens, model.max_positions or document_tokens),
        batch_size=batch_size,
    )
    state = store.resume(key) if store is not None and resume else None
    if state is None:
        d_in = model.weight(site).shape[1]
        empty = torch.zeros(d_in, d_in, dtype=torch.float64)
        state = KeyMoments(key=key, total=empty, count=0, documents=0, complete=False)
    if state.complete:
        return state
    progress = progress or SilentProgress()
    progress.start(f"key statistics of layer {site.layer}", max_tokens)
    try:
        return _run(model, state, corpus, store=store, save_every=save_every, progress=progress)
    finally:
        progress.finish()


def quality_warning(moments: KeyMoments) -> str | None:
    """Return a sentence when there are too few tokens for the width, else None."""
    width = len(moments.total)
    if moments.count >= ENOUGH_TOKENS_A_KEY_ENTRY * width:
        return None
    try:
        condition = factor_spd(moments.moment).condition
    except IllConditionedError as error:
        return error.message
    return (
        f"The key statistics of layer {moments.key.layer} come from {moments.count:,} tokens for "
        f"{width:,} key entries (condition number {condition:.1e}). Give at least "
        f"{ENOUGH_TOKENS_A_KEY_ENTRY * width:,} tokens."
    )


def _run(
    model: EditableModel,
    state: KeyMoments,
    corpus: Corpus,
    *,
    store: StatisticsStore | None,
    save_every: int,
    progress: Progress,
) -> KeyMoments:
    key, count, saved = state.key, state.count, state.documents
    total = state.total.clone()
    progress.advance(count)
    documents = state.documents
    chunk = key.batch_size * _BATCHES_A_CHUNK
    limit = float("inf") if key.max_tokens is None else key.max_tokens
    while documents < len(corpus.documents) and count < limit:
        texts = corpus.documents[documents : documents + chunk]
        for keys in _keys_of(model, key, texts, limit - count):
            block = keys.to(device="cpu", dtype=torch.float64)  # (n, d_in)
            if not bool(torch.isfinite(block).all()):
                raise NonFiniteEditError(
                    f"A key at {key.module} is not finite. Load the model in float32.",
                    module=key.module,
                )
            total += block.T @ block  # (d_in, n) @ (n, d_in)
            count += len(block)
            progress.advance(len(block))
        documents += len(texts)
        if store is not None and documents - saved >= save_every:
            store.save(
                KeyMoments(key=key, total=total, count=count, documents=documents, complete=False)
            )
            saved = documents
    done = KeyMoments(key=key, total=total, count=count, documents=documents, complete=True)
    if store is not None:
        store.save(done)
    return done


def _keys_of(
    model: EditableModel, key: MomentsKey, texts: tuple[str, ...], room: float
) -> Iterator[Tensor]:
    rows = []
    for text in texts:
        ids = model.encode(text).ids[: key.document_tokens]
        ids = ids[: int(min(room, len(ids)))]
        room -= len(ids)
        if ids:
            rows.append(ids)
    rows.sort(key=len)  # rows of like length waste little on padding; the sort is stable
    for first in range(0, len(rows), key.batch_size):
        batch = pad_batch(rows[first : first + key.batch_size], model.pad_id, device=model.device)
        with torch.no_grad(), record(model.model, [key.module], inputs=True, stop=True) as seen:
            model.logits(batch)
        yield seen[key.module][batch.attention_mask.bool()]  # (rows, len, d_in) -> (n, d_in)
