"""The one place that knows how a module stores its weight.

Everywhere else a weight is ``(d_out, d_in)``, so ``y = W x``. GPT-2's ``Conv1D`` stores ``W.T``.
The module's type decides, never its shape: a square matrix has no telling shape.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from editkit_core.errors import UnsupportedModuleError
from editkit_core.models.holding import held_otherwise


def has_sides(module: nn.Module) -> bool:
    """Say whether a module is a projection whose orientation is known: a Linear or a Conv1D."""
    return isinstance(module, (Conv1D, nn.Linear))


def sides(module: nn.Module) -> tuple[int, int]:
    """Return ``(d_out, d_in)`` of a projection.

    Raises:
        UnsupportedModuleError: The module is neither a Linear nor a Conv1D.
    """
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    raise UnsupportedModuleError(
        f"The weight of a {type(module).__name__} has no orientation editkit knows. Choose a site "
        "on a torch.nn.Linear or a transformers Conv1D.",
        module_type=type(module).__name__,
    )


def out_in(module: nn.Module) -> torch.Tensor:
    """Return the module's weight as a view ``(d_out, d_in)``; writing to it writes the weight.

    Raises:
        UnsupportedModuleError: The module is no projection, or its weight is quantised.
    """
    shape = sides(module)
    weight: torch.Tensor = module.weight  # type: ignore[assignment]  # both kinds have one
    held = None if weight.is_meta else held_otherwise(weight)
    if held is None and to_out_in(module, weight).shape != shape:
        held = f"of shape {tuple(weight.shape)}"
    if held is not None:
        raise UnsupportedModuleError(
            f"The weight of this {type(module).__name__} is {held}, not floats of shape {shape}. "
            "Load the model unquantised, or apply patches with mode 'overlay'.",
            module_type=type(module).__name__,
            expected=shape,
            found=tuple(weight.shape),
        )
    return to_out_in(module, weight)


def to_out_in(module: nn.Module, native: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the module's own weight layout as a view ``(d_out, d_in)``."""
    sides(module)
    return native.T if isinstance(module, Conv1D) else native


def to_native(module: nn.Module, weight_out_in: torch.Tensor) -> torch.Tensor:
    """Return a tensor ``(d_out, d_in)`` as a view in the module's own weight layout."""
    sides(module)
    return weight_out_in.T if isinstance(module, Conv1D) else weight_out_in
