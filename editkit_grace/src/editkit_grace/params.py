"""GRACE's parameters."""

from __future__ import annotations

from typing import Literal

import attrs

from editkit_core.validators import number, one_of, whole

Stack = Literal["decoder", "encoder"]
Scale = Literal["absolute", "relative"]
Init = Literal["cold", "warm"]
Replacement = Literal["replace_last", "replace_prompt", "replace_all"]
Expand = Literal["coverage", "moving_average"]


@attrs.frozen(kw_only=True)
class GraceParams:
    """How GRACE edits. Sources: [1] Hartvigsen et al. 2023 and its code, or ours.

    Attributes:
        layer: Block whose feed-forward gets the codebook, from 0 within its stack; none means
            ``layer_fraction``. Source: [1].
        layer_fraction: Share of the depth, 0 to 1: the layer is the nearest whole number to it
            times the number of blocks, the last but one at most: answers of several tokens need
            blocks above. Used when ``layer`` is not given. Source: ours.
        stack: Which stack of an encoder-decoder; other models have the decoder alone. Source: [1].
        projection: Which projection of the feed-forward is gated, by the last part of its path, as
            ``c_fc``; none means the down projection. Source: [1].
        eps: Radius of a new ball: in units of the key, or a share of the key's norm (see
            ``eps_mode``). Source: [1].
        eps_mode: ``absolute`` as in the paper; ``relative`` fits layers and models of any scale.
            Source: ours.
        lr: Adam's learning rate: in units of the value, or a share of the root mean square of what
            the module gives at the query (see ``lr_mode``). Source: [1].
        lr_mode: ``absolute`` as in the paper, or ``relative``. Source: ours.
        steps: Most updates of a value. Source: [1].
        init: Where a value starts: ``cold``: uniform from 0 to 1 (times what the learning rate is a
            share of), ``warm``: what the module gives at the query. Source: [1].
        replacement: Which outputs of a routed prompt become the value: ``replace_last``: its last
            token's; ``replace_prompt``: those before its last token; ``replace_all``: all of them,
            and those of generated tokens. Source: [1].
        expand: How a ball grows to reach another key of the same target: ``coverage`` moves its
            edge, ``moving_average`` its centre too. Source: [1].
        only_if_wrong: Whether a request is left out when the model gives its target already.
            Source: [1].
        early_stop_loss: A value's updates end at a loss below this; none takes all steps.
            Source: ours.
    """

    layer: int | None = attrs.field(default=None, validator=whole(0))
    layer_fraction: float = attrs.field(default=0.75, validator=number(low=0, high=1))
    stack: Stack = attrs.field(default="decoder", validator=one_of("decoder", "encoder"))
    projection: str | None = attrs.field(default=None)
    eps: float = attrs.field(default=0.1, validator=number(above=0))
    eps_mode: Scale = attrs.field(default="relative", validator=one_of("absolute", "relative"))
    lr: float = attrs.field(default=0.5, validator=number(above=0))
    lr_mode: Scale = attrs.field(default="relative", validator=one_of("absolute", "relative"))
    steps: int = attrs.field(default=100, validator=whole(1))
    init: Init = attrs.field(default="warm", validator=one_of("cold", "warm"))
    replacement: Replacement = attrs.field(
        default="replace_last",
        validator=one_of("replace_last", "replace_prompt", "replace_all"),
    )
    expand: Expand = attrs.field(default="coverage", validator=one_of("coverage", "moving_average"))
    only_if_wrong: bool = True
    early_stop_loss: float | None = attrs.field(default=0.01, validator=number(above=0))
