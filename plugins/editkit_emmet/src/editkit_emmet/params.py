"""EMMET's parameters."""

from __future__ import annotations

import attrs

from editkit_core.numerics.window_params import WindowParams
from editkit_core.validators import number


@attrs.frozen(kw_only=True)
class EmmetParams(WindowParams):
    """How EMMET edits: the window's parameters and how strictly values are met.

    Only the product ``slack * covariance_weight`` counts: with 0 every value is met exactly, else
    the change is that of MEMIT with this weight. Both names are kept because papers give both.

    Attributes:
        slack: λ_e: how far the change may miss the values; 0 meets them exactly. Source: Gupta et
            al. 2024, section 4, and their code's ``emmet_lambda``.
        covariance_weight: λ_C, the factor of the key statistics. Source: as above.
        max_condition: Condition number of the system of edits from which exact values are given
            up: those of a batch with nearly equal keys are then met with ``slack_when_needed``,
            and the patch says so. Source: ours.
        slack_when_needed: The λ_e used then; 0 refuses such a batch. Source: ours.
    """

    first_fraction: float = attrs.field(default=0.2, validator=number(low=0, high=1))
    last_fraction: float = attrs.field(default=0.2, validator=number(low=0, high=1))
    slack: float = attrs.field(default=0.1, validator=number(low=0))
    covariance_weight: float = attrs.field(default=1000.0, validator=number(above=0))
    max_condition: float = attrs.field(default=1e10, validator=number(above=1))
    slack_when_needed: float = attrs.field(default=0.1, validator=number(low=0))
