"""One rounding from float64 to a narrower float; torch's own cast rounds twice.

``Tensor.to(bfloat16)`` of a float64 tensor goes through float32, so 1 + 2⁻⁸ + 2⁻⁴⁰ becomes first
1 + 2⁻⁸ and then, a tie, 1 instead of 1 + 2⁻⁷; the same holds for float16. Here the way through
float32 is rounded to odd: an inexact number takes the neighbour whose last bit is 1, which is never
a tie of the narrow type and lies on the right side of it. float32 has enough bits for this (24; two
more than the narrow type would do) and the exponents of both narrow types. Only numbers that look
like ties in float32 need it, a few in ten thousand, so the rest take torch's cast.

Source: Boldo and Melquiond, "Emulation of a FMA and Correctly-Rounded Sums: Proved Algorithms Using
Rounding to Odd" (2008), theorem on double rounding with an odd intermediate.
"""

from __future__ import annotations

import torch

# The bits of float32 that bfloat16 drops, when the number is a tie; and those that are zero in
# every tie of float16, whose small numbers have ties further up.
_BFLOAT16_TIE = -0x8000
_BELOW_FLOAT16_TIE = (1 << 12) - 1
_GROUP = 8  # numbers that are looked at as one word


def round_once(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return ``x`` in ``dtype``, rounded once to the nearest, ties to even.

    Args:
        x: Numbers, float64, on any device.
        dtype: float64, float32, bfloat16 or float16.

    Returns:
        A tensor of ``dtype`` on the same device; ``x`` itself for float64. Numbers beyond the
        largest become infinite, infinities and NaN stay what they are.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return x.to(dtype)
    flat = x.reshape(-1)
    near = flat.to(torch.float32)
    rounded = near.to(dtype)
    suspects = _places(_may_be_ties(near, dtype))
    if len(suspects):
        rounded[suspects] = _to_odd(flat[suspects]).to(dtype)
    return rounded.view(x.shape)


def _may_be_ties(near: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return which float32 numbers may be ties of ``dtype``: all that are, and some others."""
    if dtype == torch.bfloat16:  # the lower half, on a little-endian machine the first
        return near.view(torch.int16)[::2] == _BFLOAT16_TIE
    return (near.view(torch.int32) & _BELOW_FLOAT16_TIE) == 0


def _places(marked: torch.Tensor) -> torch.Tensor:
    """Return the places that are marked (n,), and perhaps some beside them.

    Few are: looking for words that are not zero costs an eighth of looking for bytes.
    """
    if len(marked) % _GROUP:
        return marked.nonzero().squeeze(1)
    words = marked.view(torch.uint8).view(torch.int64).nonzero()  # (groups, 1)
    return (words * _GROUP + torch.arange(_GROUP, device=marked.device)).flatten()


def _to_odd(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in float32, an inexact number as its odd neighbour."""
    near = x.to(torch.float32)
    back = near.to(torch.float64)
    bits = near.view(torch.int32)  # sign and magnitude: one less is one step towards zero
    truncated = bits - (back.abs() > x.abs()).to(torch.int32)
    return (truncated | (back != x).to(torch.int32)).view(torch.float32)
