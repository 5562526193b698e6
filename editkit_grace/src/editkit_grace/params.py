"""GRACE's parameters."""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs

from editkit_core.errors import InvalidParameterError

Stack = Literal["decoder", "encoder"]
Scale = Literal["absolute", "relative"]
Init = Literal["cold", "warm"]
Replacement = Literal["replace_last", "replace_prompt", "replace_all"]
Expand = Literal["coverage", "moving_average"]


def _refuse(name: str, value: object, needed: str) -> InvalidParameterError:
    return InvalidParameterError(f"{name} is {value!r}; it must be {needed}.", parameter=name)


def _whole(low: int) -> Any:  # Any: an attrs validator
    def check(_: object, field: attrs.Attribute[int | None], value: int | None) -> None:
        if value is not None and value < low:
            raise _refuse(field.name, value, f"a whole number from {low} up")

    return check


def _positive() -> Any:  # Any: an attrs validator
    def check(_: object, field: attrs.Attribute[float | None], value: float | None) -> None:
        if value is not None and not (math.isfinite(value) and value > 0):
            raise _refuse(field.name, value, "above 0")

    return check


def _share(_: object, field: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise _refuse(field.name, value, "0 or more and at most 1")


def _one_of(*known: str) -> Any:  # Any: an attrs validator
    def check(_: object, field: attrs.Attribute[str], value: str) -> None:
        if value not in known:
            raise _refuse(field.name, value, f"one of {', '.join(known)}")

    return check


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

    layer: int | None = attrs.field(default=None, validator=_whole(0))
    layer_fraction: float = attrs.field(default=0.75, validator=_share)
    stack: Stack = attrs.field(default="decoder", validator=_one_of("decoder", "encoder"))
    projection: str | None = attrs.field(default=None)
    eps: float = attrs.field(default=0.1, validator=_positive())
    eps_mode: Scale = attrs.field(default="relative", validator=_one_of("absolute", "relative"))
    lr: float = attrs.field(default=0.5, validator=_positive())
    lr_mode: Scale = attrs.field(default="relative", validator=_one_of("absolute", "relative"))
    steps: int = attrs.field(default=100, validator=_whole(1))
    init: Init = attrs.field(default="warm", validator=_one_of("cold", "warm"))
    replacement: Replacement = attrs.field(
        default="replace_last",
        validator=_one_of("replace_last", "replace_prompt", "replace_all"),
    )
    expand: Expand = attrs.field(
        default="coverage", validator=_one_of("coverage", "moving_average")
    )
    only_if_wrong: bool = True
    early_stop_loss: float | None = attrs.field(default=0.01, validator=_positive())
