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
    output's dtype, on the device of the output: where accelerate moves a module's inputs to, the
    hook sees the inputs as they were before. Factors are kept on every device the module ran on.

    Args:
        module: The module whose output is changed.
        entries: The changes and their scales.
    """

    def __init__(self, module: nn.Module, entries: Sequence[tuple[WeightEntry, float]]) -> None:
        self.entries: tuple[tuple[WeightEntry, float], ...] = ()
        self._paths: dict[tuple[torch.device, torch.dtype], list[SidePath]] = {}
        self.set(entries)
        # Before all others: what a codebook puts in shall stay as it is.
        self._handle = module.register_forward_hook(self._add, with_kwargs=True, prepend=True)

    def set(self, entries: Sequence[tuple[WeightEntry, float]]) -> None:
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
        inputs = inputs.to(total.device, dtype)
        for path in self._on(total.device, dtype):
            total = total + path(inputs)
        return total.to(output.dtype)

    def _on(self, device: torch.device, dtype: torch.dtype) -> list[SidePath]:
        if (device, dtype) not in self._paths:
            self._paths[device, dtype] = [
                _scaled(entry.side_path(device, dtype), scale) for entry, scale in self.entries
            ]
        return self._paths[device, dtype]


def _scaled(path: SidePath, scale: float) -> SidePath:
    return path if scale == 1 else lambda inputs: scale * path(inputs)
