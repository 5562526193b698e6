"""How a module holds its weight: as plain floats, quantised, or offloaded.

accelerate's ``cpu_offload``, ``disk_offload`` and device maps keep weights elsewhere, leave
``meta`` parameters behind, and fill them in while the module runs. Quantised weights are tensor
subclasses (torchao) or packed integers (bitsandbytes).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def held_otherwise(weight: Tensor) -> str | None:
    """Say how a weight is held when it is not plain floats in memory, else None.

    >>> held_otherwise(torch.zeros(1, device="meta")), held_otherwise(torch.zeros(1))
    ('offloaded', None)
    """
    if weight.is_meta:
        return "offloaded"
    if is_subclass(weight):
        return f"quantised ({type(weight.data).__name__})"
    return None if weight.dtype in _FLOATS else f"quantised ({weight.dtype})"


def is_subclass(tensor: Tensor) -> bool:
    """Say whether a tensor's data are of a class of their own, as torchao's are."""
    return type(tensor.data) is not Tensor


def fetch(module: nn.Module, name: str) -> Tensor | None:
    """Return a module's own parameter or buffer; when accelerate holds it, from there, on the CPU.

    The module is left as it was. What is returned may share memory with what accelerate keeps.

    Args:
        module: The module.
        name: A name within it, without dots.

    Returns:
        The tensor, detached, or None when it is offloaded by something else.
    """
    live: Tensor = getattr(module, name).detach()
    if not live.is_meta or not hasattr(module, "_hf_hook"):
        return None if live.is_meta else live
    from accelerate.utils import (  # it made the hook, so it is installed
        align_module_device,
        has_offloaded_params,
    )

    if not has_offloaded_params(module):
        return None
    with align_module_device(module, torch.device("cpu")):
        live = getattr(module, name).detach()
    return None if live.is_meta else live


def execution_device(module: nn.Module) -> torch.device | None:
    """Return where accelerate runs an offloaded module, or None when it does not say."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return None if device is None else torch.device(device)


def plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors a tensor is made of; a plain one yields itself."""
    if not is_subclass(tensor) or not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from plain_parts(getattr(tensor, name))
