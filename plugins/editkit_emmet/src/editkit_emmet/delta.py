"""EMMET's change: the values of a batch met exactly, other keys disturbed least.

    Δ = R (λ_e I + Kᵀ (λ_C C)⁻¹ K)⁻¹ Kᵀ (λ_C C)⁻¹

For λ_e = 0 that is the least tr(Δ C Δᵀ) with Δ K = R, which for one edit is ROME. For λ_e > 0 it
is MEMIT with λ = λ_e λ_C.

Source: Gupta et al. 2024, equation 9, and their code for λ_e.
Differs: One system of the edits, solved with the Cholesky factor of C; a batch whose keys are
    nearly dependent is met with some slack and says so, where the authors' code falls back to a
    pseudo-inverse without a word.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from editkit_core import EditableModel, EditContext, EditRequest, Patch, Site
from editkit_core.errors import IllConditionedError
from editkit_core.numerics.batch_solve import Change, batch_change
from editkit_core.numerics.window_change import System
from editkit_core.numerics.window_edit import edit_window
from editkit_core.patch.format import MethodRef
from editkit_emmet import __version__
from editkit_emmet.params import EmmetParams


def compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: EmmetParams,
    context: EditContext,
) -> Patch:
    """Return a patch with one entry a layer; the model is left bit-identical.

    Raises:
        RequestError: Two requests ask the same, or a prompt or target cannot be read.
        StatisticsError: Key statistics are missing, damaged or cannot be solved with, or the keys
            of the batch are dependent and no slack is allowed.
        EditError: A value, key or change is not finite or too large.
    """
    weights: list[float] = []
    metrics: dict[str, Any] = {"effective_weight": weights}  # Any: JSON values

    def solve(system: System) -> Change:
        change, weight = constrained_change(system, params)
        weights.append(weight)
        return change

    return edit_window(
        model,
        requests,
        sites,
        solve,
        params=params,
        context=context,
        method=MethodRef(name="emmet", dist="editkit-emmet", version=__version__),
        metrics=metrics,
    )


def constrained_change(system: System, params: EmmetParams) -> tuple[Change, float]:
    """Return the change of a layer and the weight λ_e λ_C it was solved with.

    Raises:
        IllConditionedError: The keys are dependent and no slack is allowed.
    """
    weight = params.slack * params.covariance_weight
    solve = partial(
        batch_change, system.keys, system.residuals, system.covariance, earlier=system.earlier
    )
    try:
        change = solve(weight=weight, max_condition=params.max_condition)
    except IllConditionedError as error:
        weight = params.slack_when_needed * params.covariance_weight
        if params.slack > 0 or not weight:
            raise
        logging.getLogger("editkit").warning(
            "%s Values are met with slack %g instead.", error.message, params.slack_when_needed
        )
        change = solve(weight=weight)
    return change, weight
