"""The one sum by which patches become a weight: cast_once(pristine + Σ scale · ΔW).

It is taken in float64 on the CPU, block by block, so that it costs one pass over the weight and
never a second copy of it in float64. The order is the caller's; :func:`canonical` gives the one
that makes permutations of the same patches the same bits.

d_out, d_in: sides of the weight; r: sum of the ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from editkit_core.errors import ApplyError
from editkit_core.patch import bits
from editkit_core.patch.rounding import round_once

if TYPE_CHECKING:
    from editkit_core.patch.format import Patch
    from editkit_core.patch.kinds import WeightEntry

_BLOCK_NUMBERS = 2**19  # float64 numbers of a block: 4 MiB, which stays in the cache
_HALF = (torch.bfloat16, torch.float16)
_MOST_BY_TERMS = 4  # up to this rank adding term by term is faster than a matrix product


def canonical(patches: Iterable[tuple[Patch, float]]) -> list[tuple[Patch, float]]:
    """Return patches and their scales in the order of their ids."""
    return sorted(patches, key=lambda item: item[0].header.id)


def merged(
    pristine: Tensor, summands: Sequence[tuple[WeightEntry, float]], layout: str, *, name: str
) -> Tensor:
    """Return ``cast(pristine + Σ scale · ΔW)``, rounded once.

    Full matrices are added first, in the order given; then one product of all factors, which are
    concatenated in the order given.

    Args:
        pristine: The base weight in its own layout, any float dtype, on any device.
        summands: Changes of that weight and their scales.
        layout: ``out_in``, or ``in_out`` for a weight stored as (d_in, d_out).
        name: What to call the weight in an error.

    Returns:
        A new contiguous tensor with the dtype and device of ``pristine``.

    Raises:
        ApplyError: A number would overflow.
    """
    base = pristine.detach().cpu()
    summed = Summed(summands, layout)
    new = torch.empty(base.shape, dtype=base.dtype)
    rows = max(1, _BLOCK_NUMBERS // base.shape[1])
    block = torch.empty(min(rows, base.shape[0]), base.shape[1], dtype=torch.float64)
    for start in range(0, base.shape[0], rows):
        stop = min(start + rows, base.shape[0])
        total = block[: stop - start].copy_(base[start:stop])
        summed.add_to(total, start, stop)
        new[start:stop] = round_once(total, base.dtype) if base.dtype in _HALF else total
        if not bits.all_finite(new[start:stop]) and bits.all_finite(base[start:stop]):
            raise ApplyError(
                f"With the patch {name} would overflow {new.dtype}. Nothing was changed. Use mode "
                "overlay, or the model in float32.",
                parameter=name,
            )
    return new.to(pristine.device)


class Summed:
    """The changes of one weight, ready to be added block by block.

    Args:
        summands: The changes and their scales.
        layout: ``out_in``, or ``in_out`` for a weight stored as (d_in, d_out).
    """

    def __init__(self, summands: Sequence[tuple[WeightEntry, float]], layout: str) -> None:
        self._left, self._right = _factors(summands, layout)
        self._dense = [(e.delta(layout), scale) for e, scale in summands if e.factors() is None]

    def add_to(self, block: Tensor, start: int, stop: int) -> None:
        """Add the stored weight's rows ``start`` to ``stop`` to a float64 block in place."""
        for delta, scale in self._dense:
            block.add_(delta[start:stop], alpha=scale)
        _add_product(block, self._left[start:stop], self._right)


def _factors(summands: Sequence[tuple[WeightEntry, float]], layout: str) -> tuple[Tensor, Tensor]:
    """Return all factors side by side: (rows, r) and (r, columns) of the stored weight, float64."""
    lefts, rights = [], []
    for entry, scale in summands:
        factors = entry.factors()
        if factors is None:
            continue
        u, v = factors
        left, right = (v.T, u.T) if layout == "in_out" else (u, v)
        lefts.append(left.astype(np.float64) * scale)
        rights.append(right.astype(np.float64))
    if not lefts:
        return torch.empty(0, 0, dtype=torch.float64), torch.empty(0, 0, dtype=torch.float64)
    return (
        torch.from_numpy(np.ascontiguousarray(np.concatenate(lefts, axis=1))),
        torch.from_numpy(np.ascontiguousarray(np.concatenate(rights, axis=0))),
    )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if len(right) > _MOST_BY_TERMS:
        total.addmm_(left, right)  # (rows, r) @ (r, columns)
        return
    for i in range(len(right)):
        total.addcmul_(left[:, i : i + 1], right[i])  # (rows, 1) * (columns,)
