"""Running mean and standard deviation, updated on demand only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Normaliser"]

TINY = 1e-7


class Normaliser(nn.Module):
    """x ↦ (x - μ) / (σ + 1e-7), with μ and σ of every vector shown to `update`, in float64.

    Nothing but `update` changes it: neither a forward pass nor the training mode.

    Differs: The authors' code updates in every forward pass of a module in training mode, also when
        that is an edit or an evaluation. Fewer than two vectors leave x as it is; theirs fails.

    Args:
        width: d, the length of the vectors.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(width, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take vectors (n, d) into the statistics: Chan's merge of two sets of moments."""
        n = x.shape[0]
        if n == 0:
            return
        x = x.to(torch.float64)
        mean = x.mean(dim=0)
        m2 = (x - mean).square().sum(dim=0)
        total = self.count + n
        shift = mean - self.mean
        self.m2 += m2 + shift.square() * (self.count * n / total)
        self.mean += shift * (n / total)
        self.count.copy_(total)

    def deviation(self) -> Tensor:
        """Return σ (d,), float64, with n - 1 in the denominator."""
        return (self.m2 / (self.count - 1)).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised vectors, in the dtype of ``x (n, d)``."""
        if self.count < 2:
            return x
        scale = (self.deviation() + TINY).to(x.dtype)
        return (x - self.mean.to(x.dtype)) / scale
