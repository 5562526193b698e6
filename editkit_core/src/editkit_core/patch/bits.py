"""Tensors as bits: equality, digests, and the one sum every realisation of a patch uses."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

import torch

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
CONTAINER_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's bytes in row-major order; of a tensor on the CPU without a copy."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data)


def sha256(tensor: torch.Tensor) -> str:
    """Return the digest of a tensor's bytes."""
    return hashlib.sha256(as_bytes(tensor)).hexdigest()


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Say whether two float tensors are the same bit for bit (-0.0 is not 0.0)."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    integers = _INTEGERS[left.element_size()]
    return torch.equal(left.view(integers), right.view(integers))


def is_plain(tensor: torch.Tensor) -> bool:
    """Say whether a weight is in memory as ordinary floats: not offloaded, not quantised."""
    return (
        not tensor.is_meta
        and type(tensor.data) is torch.Tensor
        and tensor.dtype in CONTAINER_DTYPES
    )


def all_finite(tensor: torch.Tensor) -> bool:
    """Say whether a tensor holds no NaN and no infinity; one pass, no copy."""
    low, high = torch.aminmax(tensor)  # a NaN anywhere is the result
    return math.isfinite(low.item()) and math.isfinite(high.item())


def cast_once(pristine: torch.Tensor, deltas: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return ``cast(pristine + Σ deltas)``: summed in float64 in the given order, cast at the end.

    Args:
        pristine: The base weight, any float dtype, on any device.
        deltas: Changes of the same shape, float64, on the CPU.

    Returns:
        A new contiguous tensor with the dtype and device of ``pristine``.
    """
    total = pristine.detach().cpu().to(torch.float64, copy=True)
    for delta in deltas:
        total += delta
    return total.to(pristine.dtype).to(pristine.device).contiguous()
