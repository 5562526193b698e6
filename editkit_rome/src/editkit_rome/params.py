"""ROME's parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import attrs

from editkit_core.errors import InvalidParameterError
from editkit_core.types import SLOT, TokenPosition

Variant = Literal["r-rome", "rome", "p-rome"]
KlPosition = Literal["subject_last", "prompt_last"]
LrMode = Literal["absolute", "relative"]
ClampMode = Literal["value", "stream"]
KeySource = Literal["prompt", "mention", "both"]
Insertion = Literal["token", "rank_one"]
CovarianceMode = Literal["required", "auto", "identity"]


def _refuse(name: str, value: object, needed: str) -> InvalidParameterError:
    return InvalidParameterError(f"{name} is {value!r}; it must be {needed}.", parameter=name)


def _whole(low: int) -> Any:  # Any: an attrs validator
    def check(_: object, field: attrs.Attribute[int | None], value: int | None) -> None:
        if value is not None and value < low:
            raise _refuse(field.name, value, f"a whole number from {low} up")

    return check


def _number(
    *, above: float | None = None, low: float | None = None, high: float = math.inf
) -> Any:  # Any: an attrs validator
    def check(_: object, field: attrs.Attribute[float | None], value: float | None) -> None:
        if value is None:
            return
        big_enough = value > above if above is not None else low is None or value >= low
        if not (math.isfinite(value) and big_enough and value <= high):
            start = f"above {above:g}" if above is not None else f"{low:g} or more"
            end = "" if high == math.inf else f" and at most {high:g}"
            raise _refuse(field.name, value, f"{start}{end}")

    return check


def _one_of(*known: str) -> Any:  # Any: an attrs validator
    def check(_: object, field: attrs.Attribute[str], value: str) -> None:
        if value not in known:
            raise _refuse(field.name, value, f"one of {', '.join(known)}")

    return check


def _pairs(value: Iterable[Iterable[int]]) -> Any:  # Any: their lengths are checked later
    return tuple(tuple(pair) for pair in value)


def _texts(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


@attrs.frozen(kw_only=True)
class RomeParams:
    """How ROME edits. Sources: [1] Meng et al. 2022, [2] Gupta et al. 2024, or ours.

    Attributes:
        layer: Block whose feed-forward down projection is edited, from 0; none means
            ``layer_fraction``. Source: [1].
        layer_fraction: Share of the depth, 0 to 1: the layer is the nearest whole number to it
            times the number of blocks. Used when ``layer`` is not given. Source: ours.
        variant: ``r-rome`` takes the averaged key wherever a key occurs; ``rome`` divides by the
            bare prompt's key, as the first code did; ``p-rome`` takes the bare prompt's key
            everywhere and no contexts. Source: [2].
        fact_token: The token whose state is read and written. Source: [1].
        key_from: Texts whose keys are averaged: ``prompt``: the prompt after each context, as in
            the paper; ``mention``: the subject alone after each context, which fits other phrasings
            better where a key depends on the words before the subject; ``both``: their mean.
            Source: ours.
        v_steps: Iterations of the value's optimisation; one less is the most updates. Source: [1].
        v_lr: Adam's learning rate: in units of the hidden state, or a share of the residual
            stream's root mean square (see ``v_lr_mode``). Source: [1].
        v_lr_mode: ``absolute`` as in the paper; ``relative`` fits layers and models of any scale.
            Source: ours.
        v_insertion: What the value's optimisation changes: ``token``: the subject's token alone, as
            in the paper; ``rank_one``: every token, as the finished rank-one change will, so that
            nothing is lost between the value and the edit. Source: ours.
        v_weight_decay: Weight of the penalty on the value's change: times its norm over the squared
            norm of the old value (absolute), or over the residual stream's norm (relative).
            Source: [1].
        clamp_norm: Largest change of the value, as a multiple of what ``clamp_mode`` names.
            Source: [1].
        clamp_mode: ``value``: the norm of the old value, as in the paper; ``stream``: the norm of
            the residual stream there. Source: ours.
        loss_stop: The optimisation stops at a loss below this. Source: [1].
        kl_factor: Weight of the drift penalty on ``kl_prompts``. Source: [1].
        kl_prompts: Templates with ``{}`` for the subject whose next token is to stay. Source: [1].
        kl_position: Where these are read: ``subject_last`` as in the first code, or ``prompt_last``
            as in the paper's text. Source: [1].
        essence_samples: How many texts the unedited model writes about the subject, to keep its
            other facts; 0 for none. Source: ours.
        essence_length: Tokens of each such text. Source: ours.
        essence_factor: Weight of the penalty on changing what these texts say. Source: ours.
        ending_factor: Weight of the penalty on changing what the model says right after the target;
            without it a small model may repeat the target instead of ending the sentence.
            Source: ours.
        covariance: ``required``: key statistics must exist; ``auto``: otherwise they are made from
            text the model samples, and kept; ``identity``: never used. Source: [1] requires them.
        covariance_ridge: Share of the statistics' mean diagonal that is added to the diagonal.
            Source: ours.
        contexts: Pairs (tokens, number of texts) of sampled texts put before the prompt.
            Source: [1].
        context_seed: Seed of these texts; none takes the edit's seed. Source: ours.
        max_rel_norm: Refuse a change larger than this share of the weight, in Frobenius norm; none
            accepts any. Source: ours.
    """

    layer: int | None = attrs.field(default=None, validator=_whole(0))
    layer_fraction: float = attrs.field(default=1 / 6, validator=_number(low=0, high=1))
    variant: Variant = attrs.field(default="r-rome", validator=_one_of("r-rome", "rome", "p-rome"))
    fact_token: TokenPosition = attrs.field(
        default="subject_last",
        validator=_one_of("subject_last", "subject_first", "subject_first_after_last", "last"),
    )
    key_from: KeySource = attrs.field(
        default="prompt", validator=_one_of("prompt", "mention", "both")
    )
    v_steps: int = attrs.field(default=25, validator=_whole(1))
    v_lr: float = attrs.field(default=0.3, validator=_number(above=0))
    v_lr_mode: LrMode = attrs.field(default="relative", validator=_one_of("absolute", "relative"))
    v_insertion: Insertion = attrs.field(default="rank_one", validator=_one_of("token", "rank_one"))
    v_weight_decay: float = attrs.field(default=1e-3, validator=_number(low=0))
    clamp_norm: float = attrs.field(default=2.0, validator=_number(above=0))
    clamp_mode: ClampMode = attrs.field(default="stream", validator=_one_of("value", "stream"))
    loss_stop: float = attrs.field(default=0.05, validator=_number(low=0))
    kl_factor: float = attrs.field(default=0.0625, validator=_number(low=0))
    kl_prompts: tuple[str, ...] = attrs.field(default=("{} is a",), converter=_texts)
    kl_position: KlPosition = attrs.field(
        default="subject_last", validator=_one_of("subject_last", "prompt_last")
    )
    essence_samples: int = attrs.field(default=0, validator=_whole(0))
    essence_length: int = attrs.field(default=16, validator=_whole(1))
    essence_factor: float = attrs.field(default=1.0, validator=_number(low=0))
    ending_factor: float = attrs.field(default=0.0, validator=_number(low=0))
    covariance: CovarianceMode = attrs.field(
        default="auto", validator=_one_of("required", "auto", "identity")
    )
    covariance_ridge: float = attrs.field(default=0.0, validator=_number(low=0))
    contexts: tuple[tuple[int, int], ...] = attrs.field(
        default=((5, 10), (10, 10)), converter=_pairs
    )
    context_seed: int | None = attrs.field(default=None, validator=_whole(0))
    max_rel_norm: float | None = attrs.field(default=None, validator=_number(above=0))

    @kl_prompts.validator
    def _check_kl_prompts(self, _: object, value: tuple[str, ...]) -> None:
        for template in value:
            if template.count(SLOT) != 1:
                raise _refuse("kl_prompts", template, "a text with one {} for the subject")

    @contexts.validator
    def _check_contexts(self, _: object, value: tuple[tuple[int, int], ...]) -> None:
        for pair in value:
            if len(pair) != 2 or pair[0] < 1 or pair[1] < 0:
                raise _refuse("contexts", pair, "pairs (tokens, number of texts), such as [5, 10]")
