"""Check a patch by what the model does with it: log p(target | prompt) before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch

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
    pairs = [model.encode_pair(edit.text, edit.target_new) for edit in patch.header.edits]
    rows = [pair.encoded.ids for pair in pairs]
    tokens = np.full((len(rows), max(map(len, rows))), PADDING, dtype=np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    prompts = np.array([pair.n_prompt for pair in pairs], dtype=np.int64)
    before = log_probabilities(model, tokens, prompts)
    with apply_patch(model, patch):
        after = log_probabilities(model, tokens, prompts)
    canary = Canary(tokens=tokens, prompt_lengths=prompts, before=before, after=after)
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
        ids = torch.tensor(row[row >= 0], device=model.device)[None]  # (1, length)
        logits = model.model(input_ids=ids, use_cache=False).logits[0, n_prompt - 1 : -1]
        chosen = logits.float().log_softmax(-1).gather(1, ids[0, n_prompt:, None])
        found.append(chosen.sum().item())
    return np.array(found, dtype=np.float32)
