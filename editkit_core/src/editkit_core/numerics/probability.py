"""How probable a model finds the targets of requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from editkit_core.models.pairs import IGNORED, pair_batch, pair_logits
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
    for first in range(0, len(requests), _BATCH_ROWS):
        part = requests[first : first + _BATCH_ROWS]
        batch = pair_batch(model, [(request.text, request.target_new) for request in part])
        logits = pair_logits(model, batch)  # (rows, len, vocab)
        for row, labels in zip(logits, batch.labels, strict=True):
            places = labels != IGNORED
            logs = torch.log_softmax(row[places].double(), dim=1)  # (tokens, vocab)
            spoken = logs.gather(1, labels[places][:, None])
            found.append(float(spoken.sum().exp()))
    return found
