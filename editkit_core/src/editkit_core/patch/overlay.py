"""A side path beside a module: y + Σ ΔW x, without touching the weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from editkit_core.patch.kinds import WeightEntry

SidePath = Callable[[torch.Tensor], torch.Tensor]


class Overlay:
    """The side paths of one module, added in the order given by one forward hook.

    Inputs and the sum are taken in float32 (float64 for a float64 output) and cast once to the
    output's dtype. Factors are kept on every device the module has been called on.

    Args:
        module: The module whose output is changed.
        entries: The changes.
    """

    def __init__(self, module: nn.Module, entries: Sequence[WeightEntry]) -> None:
        self.entries: tuple[WeightEntry, ...] = ()
        self._paths: dict[tuple[torch.device, torch.dtype], list[SidePath]] = {}
        self.set(entries)
        self._handle = module.register_forward_hook(self._add, with_kwargs=True)

    def set(self, entries: Sequence[WeightEntry]) -> None:
        """Replace the changes."""
        self.entries, self._paths = tuple(entries), {}

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def _add(
        self,
        module: nn.Module,
        args: tuple[Any, ...],  # Any: what the module was called with
        kwargs: dict[str, Any],
        output: torch.Tensor,
    ) -> torch.Tensor:
        inputs: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
        dtype = torch.promote_types(output.dtype, torch.float32)
        total = output.to(dtype)
        for path in self._on(inputs.device, dtype):
            total = total + path(inputs.to(dtype)).to(total.device)
        return total.to(output.dtype)

    def _on(self, device: torch.device, dtype: torch.dtype) -> list[SidePath]:
        if (device, dtype) not in self._paths:
            self._paths[device, dtype] = [e.side_path(device, dtype) for e in self.entries]
        return self._paths[device, dtype]
