"""PMET's parameters."""

from __future__ import annotations

import attrs

from editkit_core.errors import InvalidParameterError
from editkit_core.numerics.window_params import Spread, WindowParams
from editkit_core.validators import number, one_of


@attrs.frozen(kw_only=True)
class PmetParams(WindowParams):
    """How PMET edits: the window's parameters, MEMIT's weight, and its own rule to stop.

    Attributes:
        covariance_weight: λ, how many tokens of other text one edit counts as much as. Source: Li
            et al. 2024; 6000 by the authors for GPT-J, 15000 by EasyEdit.
        said_damping: Factor on the likelihood's loss while the model says the target at all its
            places. Source: the authors' code.
        said_kl_stop: While it does, the optimisation stops at a KL of at most this. Source: the
            authors' code.
        attention_values: Whether a second vector at the attention's output is trained along, so
            that the feed-forward's need not do what attention does. Source: Li et al. 2024,
            section 4.
        write_attention: Whether that vector is written too, to the attention's output projection
            of every layer, with key statistics of its own; needs ``attention_values``, and not with
            ``v_insertion=joint``. Source: the authors' code.
    """

    spread: Spread = attrs.field(default="sqrt", validator=one_of("linear", "sqrt"))
    covariance_weight: float = attrs.field(default=6000.0, validator=number(low=0))
    said_damping: float = attrs.field(default=0.1, validator=number(low=0, high=1))
    said_kl_stop: float | None = attrs.field(default=0.01, validator=number(low=0))
    attention_values: bool = True
    write_attention: bool = False

    def __attrs_post_init__(self) -> None:
        if self.write_attention and not self.attention_values:
            raise InvalidParameterError(
                "write_attention writes the values that are found for attention, and "
                "attention_values is False. Set attention_values=true.",
                parameter="write_attention",
            )
        if self.write_attention and self.v_insertion == "joint":
            raise InvalidParameterError(
                "v_insertion=joint trains the change of a feed-forward alone, and write_attention "
                "is True. Set v_insertion=token or v_insertion=rank_one.",
                parameter="v_insertion",
            )
