"""MEMIT's parameters."""

from __future__ import annotations

import attrs

from editkit_core.numerics.window_params import WindowParams
from editkit_core.validators import number


@attrs.frozen(kw_only=True)
class MemitParams(WindowParams):
    """How MEMIT edits: the window's parameters and the weight of what is to stay.

    Attributes:
        covariance_weight: λ, how many tokens of other text one edit counts as much as: the larger,
            the less the edits disturb, and the more they fall short. The paper calls it the
            number of samples. Source: Meng et al. 2023, section 4.
    """

    covariance_weight: float = attrs.field(default=15000.0, validator=number(low=0))
