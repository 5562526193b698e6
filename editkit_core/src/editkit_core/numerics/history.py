"""The keys of edits that are on a model already, so that a new change leaves them as they are.

They come from the patches themselves, not from a global: a single edit starts from none, and a
batch that is taken off is forgotten.

Source: Fang et al. 2025, "AlphaEdit: Null-Space Constrained Knowledge Editing", equation 13, where
    the state is a running sum K_p K_pᵀ.

Legend: d_in: width of a key; p: earlier edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from editkit_core.patch.format import Patch
    from editkit_core.types import Site

__all__ = ["NO_KEYS", "earlier_keys", "side_by_side"]

NO_KEYS = torch.zeros(0, 0, dtype=torch.float64)


def earlier_keys(site: Site, method: str, stack: Sequence[Patch]) -> Tensor:
    """Return K_p of the patches that a method made, ``(d_in, p)`` float64 on the CPU; p may be 0.

    Args:
        site: The weight whose keys are wanted.
        method: Only its patches count.
        stack: The patches that are on the model.
    """
    found = [
        torch.tensor(block.keys, dtype=torch.float64).T
        for patch in stack
        if patch.header.method.name == method
        for block in patch.evidence
        if block.module == site.module
    ]
    return side_by_side(found)


def side_by_side(blocks: Sequence[Tensor]) -> Tensor:
    """Return keys ``(d_in, p_i)`` as one matrix; more than d_in become d_in with the same K_p K_pᵀ.

    Where they count, as residuals of 0, only that product does.
    """
    blocks = [block for block in blocks if block.numel()]
    if not blocks:
        return NO_KEYS
    keys = torch.cat(list(blocks), dim=1)  # (d_in, p)
    if keys.shape[1] <= keys.shape[0]:
        return keys
    values, vectors = torch.linalg.eigh(keys @ keys.T)
    columns: Tensor = vectors * values.clamp(min=0).sqrt()
    return columns
