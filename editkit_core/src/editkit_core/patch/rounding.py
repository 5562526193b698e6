"""One rounding from float64 to a narrower float; torch's own cast rounds twice.

``Tensor.to(bfloat16)`` of a float64 tensor goes through float32, so 1 + 2⁻⁸ + 2⁻⁴⁰ becomes first
1 + 2⁻⁸ and then, a tie, 1 instead of 1 + 2⁻⁷; the same holds for float16. Here the way through
float32 is rounded to odd: an inexact number takes the neighbour whose last bit is 1, which is never
a tie of the narrow type and lies on the right side of it. float32 has enough bits for this (24; two
more than the narrow type would do) and the exponents of both narrow types. Only numbers that look
like ties in float32 need it, one in thousands, so the rest take torch's cast.

Source: Boldo and Melquiond, "Emulation of a FMA and Correctly-Rounded Sums: Proved Algorithms Using
Rounding to Odd" (2008), theorem on double rounding with an odd intermediate.
"""

from __future__ import annotations

import torch

# A tie of the narrow type, seen in float32, ends in at least these zero bits.
_BELOW_A_TIE = {torch.bfloat16: (1 << 15) - 1, torch.float16: (1 << 12) - 1}


def round_once(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return ``x`` in ``dtype``, rounded once to the nearest, ties to even.

    Args:
        x: Numbers, float64, on any device.
        dtype: float64, float32, bfloat16 or float16.

    Returns:
        A tensor of ``dtype`` on the same device; ``x`` itself for float64. Numbers beyond the
        largest become infinite, infinities and NaN stay what they are.
    """
    if dtype not in _BELOW_A_TIE:
        return x.to(dtype)
    near = x.to(torch.float32)
    rounded = near.to(dtype)
    suspects = (near.view(torch.int32) & _BELOW_A_TIE[dtype]) == 0
    if suspects.any():
        rounded[suspects] = _to_odd(x[suspects]).to(dtype)
    return rounded


def _to_odd(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in float32, an inexact number as its odd neighbour."""
    near = x.to(torch.float32)
    back = near.to(torch.float64)
    bits = near.view(torch.int32)  # sign and magnitude: one less is one step towards zero
    truncated = bits - (back.abs() > x.abs()).to(torch.int32)
    return (truncated | (back != x).to(torch.int32)).view(torch.float32)
