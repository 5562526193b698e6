"""How much of a change survives being merged: the cosine of what is realised with what is asked.

A weight in half precision has few bits, so cast(W + ΔW) − W is not ΔW: numbers of ΔW below half a
step of W are lost, the others are rounded to whole steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editkit_core.patch.merging import Summed

if TYPE_CHECKING:
    from editkit_core.patch.kinds import WeightEntry

_BLOCK_NUMBERS = 2**16  # float64 numbers of a block: 512 KiB, which stay in the cache


def merge_cosine(
    pristine: Tensor, summands: Sequence[tuple[WeightEntry, float]], layout: str = "out_in"
) -> float:
    """Return cos(ΔW, cast(W + ΔW) − W) for ΔW = Σ scale · ΔWᵢ.

    It is taken in float64 on the CPU, block by block: low-rank changes are never held as a matrix,
    others once.

    Args:
        pristine: The weight W in its own layout and dtype, on any device.
        summands: Changes of it and their scales.
        layout: ``out_in``, or ``in_out`` for a weight stored as (d_in, d_out).

    Returns:
        From -1 to 1; 1 for no change at all, 0 when nothing of it survives or a number overflows.
    """
    summed = Summed(summands, layout)
    both = asked = realised = 0.0
    rows = max(1, _BLOCK_NUMBERS // pristine.shape[1])
    for start in range(0, pristine.shape[0], rows):
        stop = min(start + rows, pristine.shape[0])
        base = pristine[start:stop].detach().cpu().to(torch.float64)
        delta = torch.zeros_like(base)
        summed.add_to(delta, start, stop)
        # torch's cast is a last bit off the one rounding in a few numbers of a million: no matter
        got = (base + delta).to(pristine.dtype).to(torch.float64).sub_(base)
        both += torch.dot(delta.flatten(), got.flatten()).item()
        asked += torch.dot(delta.flatten(), delta.flatten()).item()
        realised += torch.dot(got.flatten(), got.flatten()).item()
    if asked == 0:
        return 1.0
    cosine = both / math.sqrt(asked * realised) if realised > 0 else 0.0
    return cosine if math.isfinite(cosine) else 0.0
