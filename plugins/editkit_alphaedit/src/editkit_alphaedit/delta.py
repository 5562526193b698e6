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

from torch import Tensor

from editkit_alphaedit import __version__
from editkit_alphaedit.params import AlphaEditParams
from editkit_core import EditableModel, EditContext, EditRequest, Patch, Site
from editkit_core.numerics.batch_solve import Change, batch_change
from editkit_core.numerics.null_space import NullSpace, load_null_spaces
from editkit_core.numerics.window_change import LayerStatistics, System
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

    def solve(system: System) -> Change:
        return protected_change(
            system.keys, system.residuals, system.earlier, system.covariance, params.ridge
        )

    return edit_window(
        model,
        requests,
        sites,
        solve,
        params=params,
        context=context,
        method=MethodRef(name=METHOD, dist="editkit-alphaedit", version=__version__),
        metrics={},
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
    return batch_change(keys, residuals, space, weight=ridge, earlier=earlier)
