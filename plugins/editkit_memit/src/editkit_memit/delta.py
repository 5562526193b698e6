"""MEMIT's change: at each layer the ridge solution for the whole batch.

    Δ = R Kᵀ (λ C + K Kᵀ)⁻¹

Source: Meng et al. 2023, equation 14 and algorithm 1.
Differs: Solved as one system of the edits with the Cholesky factor of C, so C is factored once and
    nothing is inverted.
"""

from __future__ import annotations

from collections.abc import Sequence

from editkit_core import EditableModel, EditContext, EditRequest, Patch, Site
from editkit_core.numerics.batch_solve import Change, batch_change
from editkit_core.numerics.window_change import System
from editkit_core.numerics.window_edit import edit_window
from editkit_core.patch.format import MethodRef
from editkit_memit import __version__
from editkit_memit.params import MemitParams


def compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: MemitParams,
    context: EditContext,
) -> Patch:
    """Return a patch with one entry a layer; the model is left bit-identical.

    Raises:
        RequestError: Two requests ask the same, or a prompt or target cannot be read.
        StatisticsError: Key statistics are missing, damaged or cannot be solved with.
        EditError: A value, key or change is not finite or too large.
    """

    def solve(system: System) -> Change:
        return batch_change(
            system.keys,
            system.residuals,
            system.covariance,
            weight=params.covariance_weight,
            earlier=system.earlier,
        )

    return edit_window(
        model,
        requests,
        sites,
        solve,
        params=params,
        context=context,
        method=MethodRef(name="memit", dist="editkit-memit", version=__version__),
        metrics={"covariance_weight": params.covariance_weight},
    )
