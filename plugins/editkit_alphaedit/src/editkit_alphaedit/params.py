"""AlphaEdit's parameters."""

from __future__ import annotations

from typing import Literal

import attrs

from editkit_core.numerics.window_params import WindowParams
from editkit_core.validators import number, one_of


@attrs.frozen(kw_only=True)
class AlphaEditParams(WindowParams):
    """How AlphaEdit edits: the window's parameters, the null space, and the ridge.

    Attributes:
        null_rule: ``threshold``: directions of key space whose eigenvalue in the key statistics is
            below ``null_threshold``, as in the paper; ``energy``: the weakest ones whose
            eigenvalues together are at most the share ``null_energy`` of the trace. The first
            means something else on every model. Source: Fang et al. 2025; the second is ours.
        null_threshold: τ of the first rule. Source: Fang et al. 2025.
        null_energy: The share of the second rule, 0 to 1. Source: ours.
        ridge: λ₂, the weight of the change's own norm. Source: Fang et al. 2025.
    """

    null_rule: Literal["threshold", "energy"] = attrs.field(
        default="energy", validator=one_of("threshold", "energy")
    )
    null_threshold: float = attrs.field(default=0.02, validator=number(above=0))
    null_energy: float = attrs.field(default=0.05, validator=number(above=0, high=1))
    ridge: float = attrs.field(default=10.0, validator=number(low=0))
    history: bool = True
    covariance: Literal["required", "auto"] = attrs.field(
        default="auto", validator=one_of("required", "auto")
    )
