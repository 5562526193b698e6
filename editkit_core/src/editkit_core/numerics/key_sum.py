"""Σ k kᵀ in float64, one half of it.

The sum is symmetric. It is cut into four quarters, of which the lower left one is neither computed
nor kept, and the two on the diagonal are cut again, down to small tiles. So there is little more
than half the work and the memory, most of it in a few large products.

Legend: d_in: width of a key; n: keys.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["KeySum"]

TILE = 96  # not a power of two: rows that lie such a distance apart share a place in the cache


class KeySum:
    """A running Σ k kᵀ.

    Args:
        width: d_in.
        device: Where it is summed; it has to know float64.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        places = list(_upper_half(0, width))
        shapes = [(rows.stop - rows.start, cols.stop - cols.start) for rows, cols in places]
        self.flat = torch.zeros(sum(h * w for h, w in shapes), dtype=torch.float64, device=device)
        parts = torch.split(self.flat, [h * w for h, w in shapes])
        self._blocks = [
            (rows, cols, part.view(shape))
            for (rows, cols), part, shape in zip(places, parts, shapes, strict=True)
        ]

    @classmethod
    def of(cls, total: Tensor) -> KeySum:
        """Go on from a sum ``(d_in, d_in)``, symmetric."""
        made = cls(len(total))
        for rows, cols, block in made._blocks:
            block.copy_(total[rows, cols])
        return made

    def add(self, keys: Tensor) -> None:
        """Add keys ``(n, d_in)`` of any float type, on any device."""
        across = keys.to(self.flat.device).T.contiguous().to(torch.float64)  # (d_in, n)
        for rows, cols, block in self._blocks:
            block.addmm_(across[rows], across[cols].T)  # (h, n) @ (n, w)

    def add_flat(self, flat: Tensor) -> None:
        """Add another sum of the same width, given by its ``flat``."""
        self.flat += flat.to(self.flat.device)

    @property
    def is_finite(self) -> bool:
        """Whether every key that was added is; a bad one would show on the diagonal."""
        traces = [block.trace() for rows, cols, block in self._blocks if rows == cols]
        return bool(torch.isfinite(torch.stack(traces)).all())

    def square(self) -> Tensor:
        """Return Σ k kᵀ, ``(d_in, d_in)`` float64 on the CPU, exactly symmetric."""
        whole = torch.empty(self.width, self.width, dtype=torch.float64)
        for rows, cols, block in self._blocks:
            if rows == cols:
                whole[rows, rows] = block.triu() + block.triu(1).T
            else:
                whole[rows, cols] = block
                whole[cols, rows] = block.T
        return whole


def _upper_half(start: int, stop: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of the blocks from the diagonal on, between two places of it."""
    tiles = -(-(stop - start) // TILE)
    if tiles <= 1:
        yield slice(start, stop), slice(start, stop)
        return
    middle = start + (tiles + 1) // 2 * TILE
    yield slice(start, middle), slice(middle, stop)
    yield from _upper_half(start, middle)
    yield from _upper_half(middle, stop)
