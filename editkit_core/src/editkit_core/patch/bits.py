"""Tensors as bits: equality and digests."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
CONTAINER_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    """Say whether a tensor holds no NaN and no infinity; no copy, and mostly one quick pass."""
    if math.isfinite(tensor.sum().item()):  # a NaN or an infinity anywhere stays in the sum
        return True
    low, high = torch.aminmax(tensor)  # the sum may also be too large for its dtype
    return math.isfinite(low.item()) and math.isfinite(high.item())


def seal(tensor: torch.Tensor) -> str:
    """Return a digest to notice by that a tensor was written to; for that alone.

    It is the SHA-256 of the rows' sums as whole numbers, which costs one pass over the memory, some
    thirty times less than the SHA-256 of all bytes.
    """
    flat = tensor.detach().contiguous()
    rows = flat.view(torch.uint8).reshape(flat.shape[0], -1)
    width = next(size for size in (8, 4, 2, 1) if rows.shape[1] % size == 0)
    whole = rows.view(_INTEGERS[width]).sum(dim=1, dtype=torch.int64)
    return sha256(whole)
