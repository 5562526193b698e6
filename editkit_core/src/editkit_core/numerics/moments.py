"""Key statistics: the second moment C = E[k kᵀ] of the inputs of an edited weight.

Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 3.1 and
    appendix E.1; there the keys are those of Wikipedia text.
Differs: Summed in float64 over real tokens by the attention mask; keyed by what the keys depend on
    instead of the model's name; an interrupted run goes on where it was, with the same bits.

Legend: d_in: width of a key; n: number of tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from editkit_core.errors import (
    IllConditionedError,
    InvalidParameterError,
    NonFiniteEditError,
    UnsupportedModelError,
)
from editkit_core.models.text import pad_batch
from editkit_core.models.trace import record
from editkit_core.numerics.inputs_digest import inputs_digests
from editkit_core.numerics.key_sum import KeySum
from editkit_core.numerics.moments_group import Alone, Group
from editkit_core.numerics.solve import factor_spd
from editkit_core.patch.digests import canonical
from editkit_core.types import Progress, SilentProgress, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.numerics.corpus import Corpus
    from editkit_core.numerics.moments_store import StatisticsStore

__all__ = [
    "KeyMoments",
    "MomentsKey",
    "collect_all_moments",
    "collect_moments",
    "keys_in_batches",
    "moments_keys",
    "quality_warning",
    "text_marks",
]

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
        texts: Of a finished run, 8 bytes of the SHA-256 of each document that was read, sorted,
            ``(texts,)`` int64; by them statistics that share a document are told apart from those
            that may be added up. Empty when unknown.
        error: How far off statistics of few tokens are, where that was estimated; see
            `moments_quick`.
    """

    key: MomentsKey
    total: Tensor
    count: int
    documents: int
    complete: bool
    texts: Tensor = attrs.field(factory=lambda: torch.empty(0, dtype=torch.int64), repr=False)
    error: float | None = None

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
    """Sum k kᵀ over the tokens of a corpus at one site; see :func:`collect_all_moments`."""
    (made,) = collect_all_moments(
        model,
        [site],
        corpus,
        max_tokens=max_tokens,
        document_tokens=document_tokens,
        batch_size=batch_size,
        store=store,
        save_every=save_every,
        resume=resume,
        progress=progress,
    )
    return made


def collect_all_moments(
    model: EditableModel,
    sites: Sequence[Site],
    corpus: Corpus,
    *,
    max_tokens: int | None = None,
    document_tokens: int = 1024,
    batch_size: int = 8,
    store: StatisticsStore | None = None,
    save_every: int = 1000,
    resume: bool = True,
    progress: Progress | None = None,
    group: Group | None = None,
) -> tuple[KeyMoments, ...]:
    """Sum k kᵀ over the tokens of a corpus at several sites, in one pass up to the deepest.

    A site's statistics have the same bits whether it is read alone or with others, by one process
    or by several.

    Args:
        model: The model; it is only read.
        sites: Where keys are read; all tokens count, ``site.token`` plays no part.
        corpus: The documents, each cut to the model's context.
        max_tokens: Stop after this many tokens, exactly; None reads the whole corpus.
        document_tokens: Cut documents after this many tokens, if the context is not shorter.
        batch_size: Documents in a forward pass.
        store: Where to look for finished or partial results first and to save to, if anywhere.
        save_every: Documents between two partial saves.
        resume: Whether to use what the store has; otherwise it is made anew.
        progress: Told the number of tokens.
        group: The processes that share the documents; each has the model and calls this.

    Returns:
        The finished statistics, one a site; after an interruption and a second call with the same
        bits as without one. Nothing in processes other than the first.

    Raises:
        InvalidParameterError: A number is below 1.
        NonFiniteEditError: A key is not finite.
        StatisticsError: The store holds a damaged file.
        UnsupportedModelError: The model is an encoder-decoder.
    """
    if save_every < 1:
        raise InvalidParameterError(
            f"save_every is {save_every}; it must be at least 1.", name="save_every"
        )
    keys = moments_keys(
        model,
        sites,
        corpus,
        max_tokens=max_tokens,
        document_tokens=document_tokens,
        batch_size=batch_size,
    )
    group, progress = group or Alone(), progress or SilentProgress()
    widths = [model.weight(site).shape[1] for site in sites]
    looked_up = store if resume and group.rank == 0 else None
    kept = [looked_up.resume(key) if looked_up is not None else None for key in keys]
    parts = [
        _Part(part.documents, part.count, part.complete) if part else _Part(0, 0, False)
        for part in kept
    ]
    parts = group.from_first(parts)
    done = {i: part for i, part in enumerate(kept) if part is not None and part.complete}
    if all(part.complete for part in parts):
        return tuple(done.values())
    for part, width, state in zip(parts, widths, kept, strict=True):
        if group.rank == 0 and not part.complete:
            part.sum = KeySum(width) if state is None else KeySum.of(state.total)
    del kept, state
    layers = sorted({site.layer for site in sites})
    named = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
    progress.start(f"key statistics of {named}", max_tokens)
    run = _Run(
        model=model,
        corpus=corpus,
        keys=keys,
        widths=widths,
        parts=parts,
        group=group,
        store=store,
        save_every=save_every,
        progress=progress,
    )
    try:
        run.read_all()
        made = {i: run.done(i) for i in range(len(keys)) if parts[i].sum is not None}
    finally:
        progress.finish()
    return tuple(moments for _, moments in sorted({**done, **made}.items()))


def moments_keys(
    model: EditableModel,
    sites: Sequence[Site],
    corpus: Corpus,
    *,
    max_tokens: int | None = None,
    document_tokens: int = 1024,
    batch_size: int = 8,
) -> tuple[MomentsKey, ...]:
    """Return what the statistics of a corpus at some sites will depend on.

    Raises:
        InvalidParameterError: A number is below 1.
        UnsupportedModelError: The model is an encoder-decoder.
    """
    if model.is_encoder_decoder:
        raise UnsupportedModelError(
            f"Key statistics are taken of decoders, and {model.name} is an encoder-decoder. The "
            "methods that edit it need none.",
            model=model.name,
        )
    for name, value in (
        ("max_tokens", max_tokens),
        ("document_tokens", document_tokens),
        ("batch_size", batch_size),
    ):
        if value is not None and value < 1:
            raise InvalidParameterError(f"{name} is {value}; it must be at least 1.", name=name)
    return tuple(
        MomentsKey(
            inputs_digest=digest,
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
        for site, digest in zip(sites, inputs_digests(model, sites), strict=True)
    )


def text_marks(documents: Sequence[str]) -> Tensor:
    """Return 8 bytes of each different document's SHA-256, sorted, ``(texts,)`` int64."""
    marks = {
        int.from_bytes(
            hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big", signed=True
        )
        for text in documents
    }
    return torch.tensor(sorted(marks), dtype=torch.int64)


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


def keys_in_batches(
    model: EditableModel, modules: Sequence[str], rows: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[Tensor, ...]]:
    """Run token rows in batches and yield the inputs of each module, ``(n, d_in)``.

    Nothing above the deepest module is run; padding is left out.
    """
    order = sorted(rows, key=len)  # rows of like length waste little; the sort is stable
    for first in range(0, len(order), batch_size):
        batch = pad_batch(order[first : first + batch_size], model.pad_id, device=model.device)
        with torch.no_grad(), record(model.model, modules, inputs=True, stop=True) as seen:
            model.logits(batch)
        real = batch.attention_mask.flatten().nonzero()[:, 0]
        found = [seen[name].flatten(0, 1) for name in modules]  # (rows, len, d_in) -> (n, d_in)
        whole = len(real) == batch.attention_mask.numel()
        yield tuple(keys if whole else keys.index_select(0, real.to(keys.device)) for keys in found)


@attrs.define
class _Part:
    """How far one site is; every process knows the numbers, the first one has the sum."""

    documents: int
    count: int
    complete: bool
    sum: KeySum | None = None
    saved: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.saved = self.documents


@attrs.frozen(kw_only=True)
class _Run:
    """One pass over the documents, in chunks that the processes take in turn."""

    model: EditableModel
    corpus: Corpus
    keys: Sequence[MomentsKey]
    widths: Sequence[int]
    parts: Sequence[_Part]
    group: Group
    store: StatisticsStore | None
    save_every: int
    progress: Progress

    def read_all(self) -> None:
        """Read what is missing at any site."""
        first = min(
            (part for part in self.parts if not part.complete), key=lambda part: part.documents
        )
        at, count = first.documents, first.count
        self.progress.advance(count)
        limit = self.keys[0].max_tokens
        room = float("inf") if limit is None else limit - count
        while at < len(self.corpus.documents) and room > 0:
            at, room = self._round(at, room)

    def done(self, number: int) -> KeyMoments:
        """Return the finished statistics of a site, saved."""
        made = self._moments(number, complete=True)
        if self.store is not None:
            self.store.save(made)
        return made

    def _round(self, at: int, room: float) -> tuple[int, float]:
        """Let each process take a chunk from ``at`` on; return where to go on, and what room."""
        key, rank = self.keys[0], self.group.rank
        size = key.batch_size * _BATCHES_A_CHUNK
        starts = [at + number * size for number in range(self.group.size)]
        texts = self.corpus.documents[starts[rank] : starts[rank] + size]
        rows = [self.model.encode(text).ids[: key.document_tokens] for text in texts]
        lengths = self.group.from_all([len(row) for row in rows])
        left = room - sum(map(sum, lengths[:rank]))
        sums = self._sums(starts[rank], _cut(rows, left))
        for number, start in enumerate(starts):
            active = self._active(start)
            read = _read(lengths[number], room)
            if not read:
                break
            tokens = int(min(sum(lengths[number]), room))
            for site in active:
                if rank == number and rank:
                    self.group.send((sums.get(site) or KeySum(self.widths[site])).flat)
                self._take(site, sums, tokens, start + read, sender=number)
            if number and not rank:
                self.progress.advance(tokens)
            at, room = start + read, room - tokens
        return at, room

    def _active(self, start: int) -> list[int]:
        """Return the numbers of the sites that have not got the chunk from ``start`` on."""
        parts = enumerate(self.parts)
        return [i for i, part in parts if not part.complete and part.documents <= start]

    def _sums(self, start: int, rows: Sequence[Sequence[int]]) -> dict[int, KeySum]:
        """Sum this process's chunk at every site that needs it."""
        sums: dict[int, KeySum] = {}
        active = self._active(start)
        modules = [self.keys[number].module for number in active]
        if not modules:
            return sums
        for found in keys_in_batches(self.model, modules, rows, self.keys[0].batch_size):
            for number, block in zip(active, found, strict=True):
                if number not in sums:
                    device = block.device if block.device.type == "cuda" else "cpu"
                    sums[number] = KeySum(self.widths[number], device)
                sums[number].add(block)
            if not self.group.rank:
                self.progress.advance(len(found[0]))
        return sums

    def _take(
        self, number: int, own: dict[int, KeySum], tokens: int, documents: int, *, sender: int
    ) -> None:
        """Add a chunk's sum to a site's; processes other than the first only count."""
        part, key = self.parts[number], self.keys[number]
        part.count += tokens
        part.documents = documents
        if part.sum is None:
            return
        if sender:
            chunk = KeySum(self.widths[number])
            self.group.receive(chunk.flat, sender)
        elif number in own:
            chunk = own[number]
        else:  # the chunk has no token
            return
        if not chunk.is_finite:
            raise NonFiniteEditError(
                f"A key at {key.module} is not finite. Load the model in float32.",
                module=key.module,
            )
        part.sum.add_flat(chunk.flat)
        if self.store is not None and documents - part.saved >= self.save_every:
            self.store.save(self._moments(number, complete=False))
            part.saved = documents

    def _moments(self, number: int, *, complete: bool) -> KeyMoments:
        part = self.parts[number]
        assert part.sum is not None  # this is the first process
        read = self.corpus.documents[: part.documents] if complete else ()
        return KeyMoments(
            key=self.keys[number],
            total=part.sum.square(),
            count=part.count,
            documents=part.documents,
            complete=complete,
            texts=text_marks(read),
        )


def _cut(rows: Sequence[Sequence[int]], room: float) -> list[Sequence[int]]:
    """Return the rows that are not empty, the last one cut where the room ends."""
    kept: list[Sequence[int]] = []
    for row in rows:
        row = row[: int(max(min(room, len(row)), 0))]
        room -= len(row)
        if row:
            kept.append(row)
    return kept


def _read(lengths: Sequence[int], room: float) -> int:
    """Return how many documents are read before the room ends."""
    for number, length in enumerate(lengths):
        if room <= 0:
            return number
        room -= length
    return len(lengths)
