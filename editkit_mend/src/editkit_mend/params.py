"""MEND's parameters."""

from __future__ import annotations

import math
from typing import Literal, get_args

import attrs

from editkit_core.validators import listed, number, one_of, refusal, whole

Norm = Literal["shape", "weight", "none"]
Tokens = Literal["all", "answer"]
Phrasings = Literal["own", "relation"]
Retarget = Literal["as_given", "relation"]
Decay = Literal["none", "linear", "cosine"]


def _finite(_: object, field: attrs.Attribute[float], value: float) -> None:
    if not math.isfinite(value) or value == 0:
        raise refusal(field.name, value, "a number other than 0")


@attrs.frozen(kw_only=True)
class MendParams:
    """How an editor is built, trained and used. Sources: [1] Mitchell et al. 2022, or ours.

    An editor keeps the parameters it was trained with; at an edit only ``strength`` is read, all
    others are the editor's.

    Attributes:
        layers: Blocks whose feed-forward is edited, from 0; of an encoder-decoder those of the
            decoder. None means the last ``blocks``. Source: [1].
        encoder_layers: The same for an encoder. Source: [1].
        blocks: How many of the last blocks, of each stack, where layers are not given; none means
            all. Source: [1].
        projections: Which projections of the feed-forward, by the last part of their paths, as
            ``c_fc``; none means all. Source: [1].
        rank: Rank of the network's matrices. Source: [1].
        n_hidden: Residual layers before the last one. Source: [1].
        norm: What shares the normalisation of factors: all weights of one ``shape``, as in the
            authors' code, each ``weight`` has its own, or ``none`` at all. Source: [1]; ours is
            ``weight``.
        shared: Whether the weights of one shape share one network. Source: [1].
        tokens: Tokens whose factors count: ``all``, or in what predicts the ``answer``: a decoder's
            from the prompt's last token on. Source: [1].
        edit_lr: Where the step α of every weight starts; negative descends. Source: [1], with the
            opposite sign.
        strength: Multiplies the change at an edit. Source: ours.
        lr: Adam's learning rate for the network. Source: [1].
        lr_lr: The same for the steps α. Source: [1].
        warmup: Updates in which the learning rates rise. Source: ours.
        decay: How they fall after that. Source: ours.
        c_edit: Weight of the edit's loss. Source: [1].
        c_loc: Weight of the locality loss. Source: [1].
        batch: Edits whose loss is computed at a time. Source: [1].
        n_edits: How many of them make one change together. Source: [1].
        accumulate: Such batches an update. Source: [1], which adds their gradients; ours are
            averaged.
        clip: Largest norm of an update's gradients; none for any. Source: [1].
        steps: Most updates. Source: [1].
        validate_every: Updates between validations. Source: [1].
        patience: Validations without a better score that end training; none never does.
            Source: [1].
        equivalents: Most other phrasings of an edit that are learned from at a time. Source: [1].
        locality: Prompts that are to stay that an edit is trained with. Source: [1].
        phrasings: ``own``: a request's prompt and paraphrases; ``relation``: any two phrasings that
            the data set has for its relation, which shows the network many more pairs.
            Source: ours.
        retarget: ``as_given``: each request's target; ``relation``: another answer of its relation
            each time. Source: ours.
        statistics: Edits that the normalisation is measured on, before the first update.
            Source: ours.
    """

    layers: tuple[int, ...] | None = attrs.field(default=None, converter=listed)
    encoder_layers: tuple[int, ...] | None = attrs.field(default=None, converter=listed)
    blocks: int | None = attrs.field(default=3, validator=whole(0))
    projections: tuple[str, ...] | None = attrs.field(default=None, converter=listed)
    rank: int = attrs.field(default=1920, validator=whole(1))
    n_hidden: int = attrs.field(default=1, validator=whole(0))
    norm: Norm = attrs.field(default="weight", validator=one_of(*get_args(Norm)))
    shared: bool = True
    tokens: Tokens = attrs.field(default="all", validator=one_of(*get_args(Tokens)))
    edit_lr: float = attrs.field(default=-1e-4, validator=_finite)
    strength: float = attrs.field(default=1.0, validator=_finite)
    lr: float = attrs.field(default=1e-6, validator=number(above=0))
    lr_lr: float = attrs.field(default=1e-4, validator=number(low=0))
    warmup: int = attrs.field(default=0, validator=whole(0))
    decay: Decay = attrs.field(default="none", validator=one_of(*get_args(Decay)))
    c_edit: float = attrs.field(default=0.1, validator=number(low=0))
    c_loc: float = attrs.field(default=1.0, validator=number(low=0))
    batch: int = attrs.field(default=1, validator=whole(1))
    n_edits: int = attrs.field(default=1, validator=whole(1))
    accumulate: int = attrs.field(default=10, validator=whole(1))
    clip: float | None = attrs.field(default=100.0, validator=number(above=0))
    steps: int = attrs.field(default=10_000, validator=whole(1))
    validate_every: int = attrs.field(default=500, validator=whole(0))
    patience: int | None = attrs.field(default=4, validator=whole(1))
    equivalents: int = attrs.field(default=1, validator=whole(0))
    locality: int = attrs.field(default=1, validator=whole(0))
    phrasings: Phrasings = attrs.field(default="own", validator=one_of(*get_args(Phrasings)))
    retarget: Retarget = attrs.field(default="as_given", validator=one_of(*get_args(Retarget)))
    statistics: int = attrs.field(default=200, validator=whole(2))

    @layers.validator
    @encoder_layers.validator
    def _check_layers(
        self, field: attrs.Attribute[tuple[int, ...] | None], value: tuple[int, ...] | None
    ) -> None:
        if value is not None and (len(set(value)) != len(value) or any(n < 0 for n in value)):
            raise refusal(field.name, value, "blocks counted from 0, each once")
