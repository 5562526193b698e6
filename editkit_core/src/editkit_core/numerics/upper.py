"""The blocks above a layer, run alone from the states that enter them.

What a change at a layer leaves as it was, everything up to that layer, is run once; a pass then
costs the blocks above only. They are the model's own modules within a shallow copy of its body:
no weight is copied, and hooks on them are seen.

Legend: rows: texts; after: columns that are run; d: width of the hidden states.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from editkit_core.models.text import Batch
from editkit_core.models.trace import record

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

LayerCache = tuple[Tensor, Tensor]

__all__ = ["LayerCache", "Upper", "unasked"]


@attrs.frozen(eq=False, kw_only=True)
class Upper:
    """The blocks above ``layer`` on given rows.

    Attributes:
        model: The model; it is only read.
        layer: The last block that is not run; -1 when all are run.
        batch: ``input_ids`` and ``position_ids`` are ``(rows, after)``; ``attention_mask`` is
            ``(rows, before + after)``.
        cached: For each block the attention keys and values of what stands before, ``(rows, heads,
            before, width)``; stand-ins of width 1 for the blocks that are not run. Empty when
            nothing stands before.
    """

    model: EditableModel
    layer: int
    batch: Batch
    cached: tuple[LayerCache, ...]
    _body: nn.Module = attrs.field(repr=False)
    _entry: _Entry | None = attrs.field(repr=False)

    @classmethod
    def above(
        cls, model: EditableModel, layer: int, batch: Batch, cached: Sequence[LayerCache]
    ) -> Upper:
        """Take the blocks above a layer.

        Args:
            model: A decoder.
            layer: The last block that is not run; its output is what :meth:`states` takes. -1 runs
                all blocks, from the embedding on.
            batch: What the rows read, from where they are split.
            cached: Attention keys and values of what stands before, a pair a block, or none.
        """
        body, entry = _above(model, layer)
        kept = tuple(
            _stand_in(pair) if index <= layer else pair for index, pair in enumerate(cached)
        )
        return cls(model=model, layer=layer, batch=batch, cached=kept, body=body, entry=entry)

    def states(self, hidden: Tensor | None) -> Tensor:
        """Return what feeds the head, ``(rows, after, d)``.

        Args:
            hidden: Output of block ``layer``, ``(rows, after, d)``; gradients flow to it. None when
                all blocks are run.
        """
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.cached):
            cache.update(keys, values, index)
        if self._entry is not None:
            self._entry.hidden = hidden
        try:
            with unasked(self.model, len(self.batch.input_ids)):
                out = self._body(**self.batch.inputs(), past_key_values=cache, use_cache=True)
        finally:
            if self._entry is not None:
                self._entry.hidden = None
        states: Tensor = out.last_hidden_state
        return states

    def keep(self, rows: Tensor) -> Upper:
        """Return the rows of these numbers, ``(n,)`` int64, alone."""
        return self._of(rows, tuple(self.batch.pad[row] for row in rows.tolist()))

    def portion(self, first: int, last: int) -> Upper:
        """Return the rows from ``first`` to ``last - 1`` alone; nothing is copied."""
        return self._of(slice(first, last), self.batch.pad[first:last])

    def _of(self, rows: Tensor | slice, pad: tuple[int, ...]) -> Upper:
        batch = attrs.evolve(
            self.batch,
            input_ids=self.batch.input_ids[rows],
            attention_mask=self.batch.attention_mask[rows],
            position_ids=self.batch.position_ids[rows],
            pad=pad,
        )
        cached = tuple((keys[rows], values[rows]) for keys, values in self.cached)
        return attrs.evolve(self, batch=batch, cached=cached)


def unasked(model: EditableModel, rows: int) -> AbstractContextManager[None]:
    """Let no codebook decide in the ``with`` block: what is run is a part of a text.

    So a change of weights is computed as if the codebooks on the model had no answer.
    """
    return model.asking(torch.full((rows,), -1, device=model.device))


class _Entry(nn.Module):
    """Stands for the last block that is not run: gives the states it is told."""

    def __init__(self, block: nn.Module, *, as_tuple: bool) -> None:
        super().__init__()
        self.__dict__["_block"] = block  # not a submodule
        self.as_tuple = as_tuple
        self.hidden: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:  # Any: as blocks
        hidden = hidden_states if self.hidden is None else self.hidden
        return (hidden,) if self.as_tuple else hidden

    def __getattr__(self, name: str) -> Any:  # Any: a body may read what its blocks say
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"], name)


def _above(model: EditableModel, layer: int) -> tuple[nn.Module, _Entry | None]:
    """Return a shallow copy of the body whose first blocks do nothing, and the one that gives."""
    body = model.module(model.family.body)
    if layer < 0:
        return body, None
    path = model.family.blocks.removeprefix(f"{model.family.body}.").removesuffix(".{}")
    blocks = body.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)  # a family's blocks are numbered
    as_tuple = _gives_tuple(model, blocks[0])
    entry = _Entry(blocks[layer], as_tuple=as_tuple)
    passing = [_Entry(block, as_tuple=as_tuple) for block in blocks[:layer]]
    short = nn.ModuleList([*passing, entry, *blocks[layer + 1 :]])
    short.training = blocks.training
    copied = _shallow(body)
    parent, (*way, last) = copied, path.split(".")
    for name in way:
        parent._modules[name] = _shallow(parent.get_submodule(name))
        parent = parent.get_submodule(name)
    parent._modules[last] = short
    return copied, entry


def _shallow(module: nn.Module) -> nn.Module:
    copied = copy.copy(module)
    copied.__dict__["_modules"] = dict(module._modules)
    copied.__dict__.pop("forward", None)  # accelerate binds one to the original
    return copied


def _gives_tuple(model: EditableModel, block: nn.Module) -> bool:
    """Return whether blocks return tuples, by running one token through the first one."""
    seen: list[bool] = []
    handle = block.register_forward_hook(lambda _, __, output: seen.append(type(output) is tuple))
    try:
        with torch.no_grad(), record(model.model, [model.family.block(0)], stop=True):
            one = torch.ones((1, 1), dtype=torch.int64, device=model.device)
            with unasked(model, 1):
                model.module(model.family.body)(
                    input_ids=one, attention_mask=one, position_ids=one - 1, use_cache=False
                )
    finally:
        handle.remove()
    return seen[0]


def _stand_in(pair: LayerCache) -> LayerCache:
    """Return zeros of the same rows and length that take no memory; nothing reads them."""
    keys = pair[0]
    zero = keys.new_zeros(1).expand(keys.shape[0], 1, keys.shape[2], 1)
    return zero, zero
