"""FT's parameters."""

from __future__ import annotations

from typing import Literal

import attrs

from editkit_core.errors import InvalidParameterError
from editkit_core.validators import listed, number, one_of, rising_layers, whole

Objective = Literal["prompt_last", "target_new"]
Store = Literal["auto", "dense", "low_rank", "int8"]


@attrs.frozen(kw_only=True)
class FtParams:
    """How FT trains. ``objective=target_new`` without a bound is FT-M; with one, FT-L's bound.

    Sources: [1] Zhu et al. 2020, [2] the baselines of Meng et al. 2022, [3] Zhang et al. 2024, or
    ours.

    Attributes:
        layers: Blocks whose feed-forward down projections are trained, rising; none means the one
            at ``layer_fraction``. Source: [2].
        layer_fraction: Share of the depth, 0 to 1. Used when ``layers`` is not given.
            Source: ours.
        stack: Of an encoder-decoder, the stack these blocks are in. Source: ours.
        objective: ``target_new``: the mean loss of the target's tokens, each after those before it
            (FT-M). ``prompt_last``: every token of the target is read where the first is predicted,
            as the code of [2] does; with targets of several tokens the model then learns to begin
            with any of them. Source: [2], [3].
        steps: Most passes over the requests. Source: [2].
        lr: Adam's learning rate. Source: [2].
        weight_decay: Adam's, added to the gradient. Source: [2].
        batch_size: Requests a step. Source: [2].
        linf: Largest change of any number of the weights, the bound of FT-L; none trains freely.
            Source: [1], [2].
        anchor: What the bound is measured from: ``previous``: the weights as they are now, as in
            [2], so that many edits drift without limit; ``base``: those of the base. Source: ours.
        loss_skip: A step whose loss is below this trains nothing. Source: [2].
        loss_stop: Training ends after a pass whose mean loss is below this. Source: [2].
        store: What the patch holds of the change. ``dense``: a float32 matrix. ``auto``: factors
            when at most an eighth as many as the shorter side hold it to a relative error of 1e-6
            and there is no bound, else a float32 matrix; after several of Adam's steps it is mostly
            that. ``int8``: whole numbers with a step a row, a quarter of the size; each number is
            off by at most its row's largest over 254, and a bound is kept. ``low_rank``: the
            closest change of rank ``store_rank``, not with a bound. The patch's metrics say what
            was lost. Source: ours.
        store_rank: Number of factors with ``store=low_rank``. Source: ours.
    """

    layers: tuple[int, ...] | None = attrs.field(
        default=None, converter=listed, validator=rising_layers
    )
    layer_fraction: float = attrs.field(default=0.65, validator=number(low=0, high=1))
    stack: Literal["decoder", "encoder"] = attrs.field(
        default="decoder", validator=one_of("decoder", "encoder")
    )
    objective: Objective = attrs.field(
        default="target_new", validator=one_of("prompt_last", "target_new")
    )
    steps: int = attrs.field(default=25, validator=whole(1))
    lr: float = attrs.field(default=5e-4, validator=number(above=0))
    weight_decay: float = attrs.field(default=0.0, validator=number(low=0))
    batch_size: int = attrs.field(default=8, validator=whole(1))
    linf: float | None = attrs.field(default=None, validator=number(low=0))
    anchor: Literal["previous", "base"] = attrs.field(
        default="previous", validator=one_of("previous", "base")
    )
    loss_skip: float = attrs.field(default=1e-2, validator=number(low=0))
    loss_stop: float = attrs.field(default=1e-2, validator=number(low=0))
    store: Store = attrs.field(
        default="auto", validator=one_of("auto", "dense", "low_rank", "int8")
    )
    store_rank: int = attrs.field(default=32, validator=whole(1))

    def __attrs_post_init__(self) -> None:
        if self.store == "low_rank" and self.linf is not None:
            raise InvalidParameterError(
                f"store is low_rank and linf is {self.linf:g}: a change of lower rank may have "
                "numbers above the bound. Store it as int8 or dense, or leave linf out.",
                parameter="store",
            )

    def chosen(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers to train of a stack with ``n_layers`` blocks."""
        if self.layers is not None:
            return self.layers
        return (min(int(self.layer_fraction * n_layers + 0.5), n_layers - 1),)
