"""How probable a model finds the targets of requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editkit_core.models.pairs import IGNORED, PairBatch, pair_batch, pair_logits
from editkit_core.types import EditRequest

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["target_probabilities", "target_probability"]

_BATCH_ROWS = 32


def target_probability(model: EditableModel, request: EditRequest) -> float:
    """Return p(target_new | prompt): the product over its tokens, 0 to 1.

    Raises:
        PromptTooLongError: Prompt and target do not fit the model's context.
    """
    return target_probabilities(model, [request])[0]


@torch.no_grad()
def target_probabilities(model: EditableModel, requests: Sequence[EditRequest]) -> list[float]:
    """Return p(target_new | prompt) of each request; see :func:`target_probability`."""
    found: list[float] = []
    decoder, head = not model.is_encoder_decoder, model.module(model.family.head)
    for first in range(0, len(requests), _BATCH_ROWS):
        part = requests[first : first + _BATCH_ROWS]
        batch = pair_batch(model, [(request.text, request.target_new) for request in part])
        for row, states in enumerate(_states(model, batch)):
            labels = batch.labels[row].to(states.device)
            read = states[labels != IGNORED]
            logs = (head(read) if decoder else read).double().log_softmax(dim=1)  # (tokens, vocab)
            spoken = logs.gather(1, labels[labels != IGNORED][:, None].to(logs.device))
            found.append(float(spoken.sum().exp()))
    return found


def _states(model: EditableModel, batch: PairBatch) -> Tensor:
    """Return what feeds a decoder's head, ``(rows, len, d)``; else logits ``(rows, len, vocab)``.

    A decoder's logits of all places would take more than the model's activations do.
    """
    if model.is_encoder_decoder:
        return pair_logits(model, batch)
    with model.asking(batch.queries):
        out = model.module(model.family.body)(**batch.inputs, use_cache=False)
    states: Tensor = out.last_hidden_state
    return states
