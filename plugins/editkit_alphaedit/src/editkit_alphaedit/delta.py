"""AlphaEdit's change: the ridge solution among changes that read the null space alone.

    min  ‖Δ K - R‖² + ‖Δ K_p‖² + λ₂ ‖Δ‖²     with Δ P = Δ
    Δ = [R, 0] (λ₂ I + K̂ᵀ K̂)⁻¹ K̂ᵀ,           K̂ = P [K, K_p]

P projects onto the null space of other text's keys, K_p are the keys of earlier edits. So earlier
edits keep their answers, and Δ has rank n: the columns of K_p get no value.

Source: Fang et al. 2025, equations 11 to 14.
Differs: Solved as one system of the edits so far, by Cholesky; the reference solves one of the key
    width that is not symmetric. The keys of earlier edits come from the patches that are applied,
    not from a global, so a single edit starts from none and a reverted batch is forgotten.

Legend: d_in, d_out: sides of a weight; n: edits; p: earlier edits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editkit_alphaedit import __version__
from editkit_alphaedit.params import AlphaEditParams
from editkit_core import EditableModel, EditContext, EditRequest, Patch, Site
from editkit_core.numerics.batch_solve import Change, batch_change
from editkit_core.numerics.null_space import NullSpace, load_null_spaces
from editkit_core.numerics.window import LayerStatistics, System
from editkit_core.numerics.window_edit import edit_window
from editkit_core.patch.format import MethodRef

METHOD = "alphaedit"


def compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: AlphaEditParams,
    context: EditContext,
) -> Patch:
    """Return a patch with one entry a layer; the model is left bit-identical.

    Raises:
        RequestError: Two requests ask the same, or a prompt or target cannot be read.
        StatisticsError: Key statistics are missing, damaged, or leave nothing to edit in.
        EditError: A value, key or change is not finite or too large.
    """
    spaces = null_spaces_of(model, sites, params, context)
    earlier = {site.module: earlier_keys(site, params, context.stack) for site in sites}

    def solve(system: System) -> Change:
        past = earlier[system.site.module]
        return protected_change(
            system.keys, system.residuals, past, system.covariance, params.ridge
        )

    return edit_window(
        model,
        requests,
        sites,
        solve,
        params=params,
        context=context,
        method=MethodRef(name=METHOD, dist="editkit-alphaedit", version=__version__),
        metrics={"protected_edits": max(keys.shape[1] for keys in earlier.values())},
        covariances=spaces,
        keys_after=True,
    )


def null_spaces_of(
    model: EditableModel, sites: Sequence[Site], params: AlphaEditParams, context: EditContext
) -> list[NullSpace]:
    """Return P of each site by the parameters' rule."""
    by_threshold = params.null_rule == "threshold"
    return load_null_spaces(
        model,
        sites,
        context,
        rule=params.null_rule,
        limit=params.null_threshold if by_threshold else params.null_energy,
        required=params.covariance == "required",
    )


def earlier_keys(site: Site, params: AlphaEditParams, stack: Sequence[Patch]) -> Tensor:
    """Return K_p, the keys of the AlphaEdit patches that are applied, ``(d_in, p)`` float64.

    More keys than d_in are replaced by d_in columns with the same K_p K_pᵀ.
    """
    found = [
        torch.tensor(block.keys, dtype=torch.float64)
        for patch in stack
        if params.history and patch.header.method.name == METHOD
        for block in patch.evidence
        if block.module == site.module
    ]
    if not found:
        return torch.zeros(0, 0, dtype=torch.float64)
    keys = torch.cat(found).T  # (d_in, p)
    if keys.shape[1] <= keys.shape[0]:
        return keys
    values, vectors = torch.linalg.eigh(keys @ keys.T)
    columns: Tensor = vectors * values.clamp(min=0).sqrt()
    return columns


def protected_change(
    keys: Tensor, residuals: Tensor, earlier: Tensor, space: LayerStatistics, ridge: float
) -> Change:
    """Return the change of a layer; the formula stands at the top of the module.

    Args:
        keys: K, ``(d_in, n)``.
        residuals: R, ``(d_out, n)``.
        earlier: K_p, ``(d_in, p)``; p may be 0.
        space: What projects.
        ridge: λ₂.
    """
    n = keys.shape[1]
    if earlier.numel():
        keys = torch.cat([keys, earlier], dim=1)
        nothing = residuals.new_zeros(residuals.shape[0], earlier.shape[1])
        residuals = torch.cat([residuals, nothing], dim=1)
    whole = batch_change(keys, residuals, space, weight=ridge)
    return Change(u=whole.u[:, :n], v=whole.v[:n], condition=whole.condition)
