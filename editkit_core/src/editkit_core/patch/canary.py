"""Check a patch by what the model does with it: log p(target | prompt) before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch

from editkit_core.models.pairs import (
    IGNORED,
    PairRow,
    decoder_start,
    pad_pairs,
    pair_logits,
    pair_row,
)
from editkit_core.patch.apply import apply_patch
from editkit_core.patch.digests import tensor_digest
from editkit_core.patch.evidence import PADDING, Canary
from editkit_core.patch.format import Patch
from editkit_core.patch.header_codec import seal

if TYPE_CHECKING:
    import numpy.typing as npt

    from editkit_core.models.editable import EditableModel

TOLERANCE = 0.05  # nat; other hardware and dtypes move log-probabilities by less


def with_canary(model: EditableModel, patch: Patch) -> Patch:
    """Return the patch with a canary of its own edits: prompt and ``target_new`` of each.

    Args:
        model: The model without the patch; it is left so.
        patch: A patch with at least one edit.
    """
    rows = [pair_row(model, edit.text, edit.target_new) for edit in patch.header.edits]
    prompts = [_prompt_length(row) for row in rows]
    ids = [(*row.source, *row.ids[1:]) if row.source else row.ids for row in rows]
    tokens = np.full((len(rows), max(map(len, ids))), PADDING, dtype=np.int64)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = row
    lengths = np.array(prompts, dtype=np.int64)
    before = log_probabilities(model, tokens, lengths)
    with apply_patch(model, patch):
        after = log_probabilities(model, tokens, lengths)
    canary = Canary(tokens=tokens, prompt_lengths=lengths, before=before, after=after)
    changed = attrs.evolve(patch, canary=canary)
    digests = {name: tensor_digest(name, array) for name, array in changed.tensors().items()}
    return attrs.evolve(changed, header=seal(attrs.evolve(patch.header, tensors=digests)))


def largest_deviation(model: EditableModel, patch: Patch) -> float:
    """Return how far the model is from the canary at most, in nat; it is left without the patch."""
    canary = patch.canary
    assert canary is not None  # callers ask only for patches that have one
    off = np.abs(log_probabilities(model, canary.tokens, canary.prompt_lengths) - canary.before)
    with apply_patch(model, patch):
        after = log_probabilities(model, canary.tokens, canary.prompt_lengths)
    return float(max(off.max(), np.abs(after - canary.after).max()))


@torch.no_grad()
def log_probabilities(
    model: EditableModel, tokens: npt.NDArray[np.int64], prompt_lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return log p(target | prompt) of each probe (n,), float32; probes run one by one."""
    found = []
    for row, n_prompt in zip(tokens, prompt_lengths, strict=True):
        batch = pad_pairs(model, [_row(model, [int(i) for i in row[row >= 0]], int(n_prompt))])
        logits = pair_logits(model, batch)[0]  # (length, vocab)
        places = (batch.labels[0] != IGNORED).nonzero()[:, 0]
        chosen = logits[places].log_softmax(-1).gather(1, batch.labels[0, places, None])
        found.append(chosen.sum().item())
    return np.array(found, dtype=np.float32)


def _prompt_length(row: PairRow) -> int:
    return len(row.source) or row.first


def _row(model: EditableModel, ids: Sequence[int], n_prompt: int) -> PairRow:
    """Return a probe's tokens as the model reads them: an encoder gets the prompt alone."""
    if not model.is_encoder_decoder:
        return PairRow(ids=tuple(ids), first=n_prompt)
    target = (decoder_start(model), *ids[n_prompt:])
    return PairRow(source=tuple(ids[:n_prompt]), ids=target, first=1)
