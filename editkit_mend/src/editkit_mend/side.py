"""A changed weight without the change: y + (x ûᵀ) v̂, each row of a batch with its own factors.

A matrix of the weight's shape is never made, and gradients flow into the factors.

Legend: groups: sets of edits that make one change; tokens: factors of a group, padded by zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from editkit_mend.networks import Factors

if TYPE_CHECKING:
    from editkit_core import EditableModel

__all__ = ["changed"]


@contextmanager
def changed(
    model: EditableModel,
    factors: Mapping[str, Factors],
    *,
    edits: Tensor | None = None,
    rows: Tensor | None = None,
) -> Iterator[None]:
    """Change weights during the ``with`` block; the weights themselves are not written to.

    Args:
        model: The model.
        factors: By module path.
        edits: Group (edits,) of each edit, int64; None puts all into one.
        rows: Group (rows,) of each row of the batches that run meanwhile, int64; None means that
            all rows see the one group.
    """
    handles = [
        model.module(name).register_forward_hook(
            _adder(found, edits, rows), with_kwargs=True, prepend=True
        )
        for name, found in factors.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(found: Factors, edits: Tensor | None, rows: Tensor | None) -> Callable[..., Tensor]:
    if edits is None or rows is None:
        left, right = found.left, found.right  # (tokens, d)
    else:
        groups, count = edits[found.rows], int(edits.max()) + 1
        left = _laid(found.left, groups, count)[rows]  # (rows, tokens, d_out)
        right = _laid(found.right, groups, count)[rows]  # (rows, tokens, d_in)

    def add(
        _: nn.Module,
        args: tuple[Any, ...],  # Any: what the module was called with
        kwargs: Mapping[str, Any],
        output: Tensor,
    ) -> Tensor:
        inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
        reads = inputs.to(right.dtype) @ right.mT  # (rows, len, d_in) @ (rows, d_in, tokens)
        return (output.to(left.dtype) + reads @ left).to(output.dtype)

    return add


def _laid(vectors: Tensor, groups: Tensor, count: int) -> Tensor:
    """Lay vectors (tokens, d) out by group as (groups, most tokens, d), with zeros between."""
    counts = torch.bincount(groups, minlength=count)
    order = torch.argsort(groups, stable=True)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(groups), device=groups.device) - first[groups[order]]
    laid = vectors.new_zeros(count, int(counts.max()), vectors.shape[1])
    return laid.index_put((groups[order], place), vectors[order])
