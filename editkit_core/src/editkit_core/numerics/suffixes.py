"""Rows that differ only from one token on: what comes before is run once and kept.

A vector added at a token changes nothing before it. So each row is split there; the attention keys
and values of the part before are computed once, and every later pass runs the rest only.

Legend: rows: texts; before, after: lengths of the longest part before and from the split on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor
from transformers import DynamicCache

from editkit_core.models.text import Batch, pad_batch
from editkit_core.numerics.upper import LayerCache, Upper, unasked

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["Suffixes"]


@attrs.frozen(eq=False, kw_only=True)
class Suffixes:
    """The rows from their split token on, which stands in column 0.

    Attributes:
        model: The model; it is only read.
        batch: ``input_ids`` and ``position_ids`` are ``(rows, after)``; ``attention_mask`` is
            ``(rows, before + after)``.
        cached: For each layer the keys and values ``(rows, heads, before, width)`` before.
    """

    model: EditableModel
    batch: Batch
    cached: tuple[LayerCache, ...]

    @classmethod
    def split(
        cls, model: EditableModel, rows: Sequence[Sequence[int]], at: Sequence[int]
    ) -> Suffixes:
        """Run what stands before ``at`` in each row.

        Args:
            model: The model.
            rows: Token ids, without padding.
            at: For each row the index of its split token.
        """
        parts = list(zip(rows, at, strict=True))
        head = _left_padded([row[:index] for row, index in parts], model)
        tail = pad_batch([row[index:] for row, index in parts], model.pad_id, device=model.device)
        first = torch.tensor(list(at), device=model.device)[:, None]
        batch = Batch(
            input_ids=tail.input_ids,
            attention_mask=torch.cat([head.attention_mask, tail.attention_mask], dim=1),
            position_ids=(tail.position_ids + first) * tail.attention_mask,
            pad=tail.pad,
        )
        return cls(model=model, batch=batch, cached=_run(model, head))

    def states(self) -> Tensor:
        """Return what feeds the head, ``(rows, after, d_model)``, seen by hooks and autograd."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.cached):
            cache.update(keys, values, layer)
        body = self.model.module(self.model.family.body)
        with unasked(self.model, len(self.batch.input_ids)):
            out = body(**self.batch.inputs(), past_key_values=cache, use_cache=True)
        states: Tensor = out.last_hidden_state
        return states

    def above(self, layer: int) -> Upper:
        """Return the blocks above a layer on these rows, to be run from that layer's output."""
        return Upper.above(self.model, layer, self.batch, self.cached)


def _left_padded(parts: Sequence[Sequence[int]], model: EditableModel) -> Batch:
    """Pad on the left, so that all parts end in the last column; parts may be empty."""
    width = max(len(part) for part in parts)
    padded = [[model.pad_id] * (width - len(part)) + list(part) for part in parts]
    real = [[0] * (width - len(part)) + [1] * len(part) for part in parts]
    mask = torch.tensor(real, dtype=torch.int64, device=model.device).reshape(len(parts), width)
    return Batch(
        input_ids=torch.tensor(padded, dtype=torch.int64, device=model.device).reshape(mask.shape),
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        pad=tuple(width - len(part) for part in parts),
    )


@torch.no_grad()
def _run(model: EditableModel, head: Batch) -> tuple[LayerCache, ...]:
    if head.input_ids.shape[1] == 0:
        return ()
    cache = DynamicCache()
    with unasked(model, len(head.input_ids)):
        model.module(model.family.body)(**head.inputs(), past_key_values=cache, use_cache=True)
    # A row that is padding throughout attends to nothing and may hold NaN, which a weight of 0
    # would not remove.
    padding = head.attention_mask[:, None, :, None] == 0
    return tuple(
        (layer.keys.masked_fill(padding, 0.0), layer.values.masked_fill(padding, 0.0))
        for layer in cache.layers
    )
