"""Hidden states of many texts at one token each, read from a module's output.

Legend: n: texts; d: width of the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editkit_core.models.text import pad_batch
from editkit_core.models.trace import record
from editkit_core.numerics.upper import unasked

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["states_at"]

_BATCH_ROWS = 64


def states_at(
    model: EditableModel,
    module: str,
    places: Sequence[tuple[Sequence[int], int]],
    *,
    inputs: bool = False,
) -> Tensor:
    """Return what a module gives, or gets, at one token of each text; nothing above it is run.

    Args:
        model: A decoder; it is only read.
        module: Path of the module.
        places: Token ids, without padding, and the index of the token to read. What comes after
            that token is not run: in a causal model it cannot matter.
        inputs: Whether to read what goes into the module.

    Returns:
        ``(n, d)`` float64 on the CPU, in the order of ``places``.
    """
    order = sorted(range(len(places)), key=lambda i: places[i][1])  # like lengths waste little
    found: list[Tensor] = [torch.empty(0)] * len(places)
    for first in range(0, len(order), _BATCH_ROWS):
        part = order[first : first + _BATCH_ROWS]
        rows = [tuple(places[i][0][: places[i][1] + 1]) for i in part]
        batch = pad_batch(rows, model.pad_id, device=model.device)
        seen_in = record(model.model, [module], inputs=inputs, stop=True)
        with torch.no_grad(), unasked(model, len(rows)), seen_in as seen:
            model.logits(batch)
        last = torch.tensor([batch.index(row, len(ids) - 1) for row, ids in enumerate(rows)])
        states = seen[module]  # (rows, len, d)
        read = states[torch.arange(len(rows)), last].to("cpu", torch.float64)
        for place, state in zip(part, read, strict=True):
            found[place] = state
    return torch.stack(found)
