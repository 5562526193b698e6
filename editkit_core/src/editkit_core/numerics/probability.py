"""How probable a model finds a request's target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from editkit_core.models.text import pad_batch
from editkit_core.types import EditRequest

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["target_probability"]


def target_probability(model: EditableModel, request: EditRequest) -> float:
    """Return p(target_new | prompt): the product over its tokens, 0 to 1.

    Raises:
        PromptTooLongError: Prompt and target do not fit the model's context.
    """
    pair = model.encode_pair(request.text, request.target_new)
    batch = pad_batch([pair.ids], model.pad_id, device=model.device)
    places = slice(pair.n_prompt - 1, len(pair.ids) - 1)
    logs = torch.log_softmax(model.logits(batch)[0, places].double(), dim=1)  # (tokens, vocab)
    spoken = logs.gather(1, torch.tensor(pair.target_ids, device=logs.device)[:, None])
    return float(spoken.sum().exp())
