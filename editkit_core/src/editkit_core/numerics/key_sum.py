"""Σ k kᵀ in float64, one half of it.

The sum is symmetric, so only rows of tiles from the diagonal on are computed and kept: for wide
keys little more than half the work and the memory.

Legend: d_in: width of a key; n: keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KeySum"]

TILE = 256


class KeySum:
    """A running Σ k kᵀ.

    Args:
        width: d_in.
        device: Where it is summed; it has to know float64.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        edges = range(0, width, TILE)
        sizes = [(min(TILE, width - at), width - at) for at in edges]
        self.flat = torch.zeros(sum(h * w for h, w in sizes), dtype=torch.float64, device=device)
        parts = torch.split(self.flat, [h * w for h, w in sizes])
        self._strips = [
            (at, part.view(size)) for at, part, size in zip(edges, parts, sizes, strict=True)
        ]  # rows at … at+TILE, columns from `at` on

    @classmethod
    def of(cls, total: Tensor) -> KeySum:
        """Go on from a sum ``(d_in, d_in)``, symmetric."""
        made = cls(len(total))
        for at, strip in made._strips:
            strip.copy_(total[at : at + len(strip), at:])
        return made

    def add(self, keys: Tensor) -> None:
        """Add keys ``(n, d_in)`` of any float type, on any device."""
        block = keys.to(device=self.flat.device, dtype=torch.float64)
        for at, strip in self._strips:
            strip.addmm_(block[:, at : at + len(strip)].T, block[:, at:])  # (h, n) @ (n, w)

    def add_flat(self, flat: Tensor) -> None:
        """Add another sum of the same width, given by its ``flat``."""
        self.flat += flat.to(self.flat.device)

    @property
    def is_finite(self) -> bool:
        """Whether every key that was added is; a bad one would show on the diagonal."""
        traces = torch.stack([strip[:, : len(strip)].trace() for _, strip in self._strips])
        return bool(torch.isfinite(traces).all())

    def square(self) -> Tensor:
        """Return Σ k kᵀ, ``(d_in, d_in)`` float64 on the CPU, exactly symmetric."""
        whole = torch.empty(self.width, self.width, dtype=torch.float64)
        for at, strip in self._strips:
            end = at + len(strip)
            corner = strip[:, : len(strip)]
            whole[at:end, at:end] = corner.triu() + corner.triu(1).T
            whole[at:end, end:] = strip[:, len(strip) :]
            whole[end:, at:end] = strip[:, len(strip) :].T
        return whole
