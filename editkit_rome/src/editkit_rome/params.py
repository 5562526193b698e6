"""ROME's parameters."""

from __future__ import annotations

from typing import Literal

import attrs

from editkit_core.types import SLOT, TokenPosition
from editkit_core.validators import number, one_of, pairs, refusal, texts, whole

Variant = Literal["r-rome", "rome", "p-rome"]
KlPosition = Literal["subject_last", "prompt_last"]
LrMode = Literal["absolute", "relative"]
ClampMode = Literal["value", "stream"]
KeySource = Literal["prompt", "mention", "both"]
Insertion = Literal["token", "rank_one"]
CovarianceMode = Literal["required", "auto", "identity"]


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

    layer: int | None = attrs.field(default=None, validator=whole(0))
    layer_fraction: float = attrs.field(default=1 / 6, validator=number(low=0, high=1))
    variant: Variant = attrs.field(default="r-rome", validator=one_of("r-rome", "rome", "p-rome"))
    fact_token: TokenPosition = attrs.field(
        default="subject_last",
        validator=one_of("subject_last", "subject_first", "subject_first_after_last", "last"),
    )
    key_from: KeySource = attrs.field(
        default="prompt", validator=one_of("prompt", "mention", "both")
    )
    v_steps: int = attrs.field(default=25, validator=whole(1))
    v_lr: float = attrs.field(default=0.3, validator=number(above=0))
    v_lr_mode: LrMode = attrs.field(default="relative", validator=one_of("absolute", "relative"))
    v_insertion: Insertion = attrs.field(default="rank_one", validator=one_of("token", "rank_one"))
    v_weight_decay: float = attrs.field(default=1e-3, validator=number(low=0))
    clamp_norm: float = attrs.field(default=2.0, validator=number(above=0))
    clamp_mode: ClampMode = attrs.field(default="stream", validator=one_of("value", "stream"))
    loss_stop: float = attrs.field(default=0.05, validator=number(low=0))
    kl_factor: float = attrs.field(default=0.0625, validator=number(low=0))
    kl_prompts: tuple[str, ...] = attrs.field(default=("{} is a",), converter=texts)
    kl_position: KlPosition = attrs.field(
        default="subject_last", validator=one_of("subject_last", "prompt_last")
    )
    essence_samples: int = attrs.field(default=0, validator=whole(0))
    essence_length: int = attrs.field(default=16, validator=whole(1))
    essence_factor: float = attrs.field(default=1.0, validator=number(low=0))
    ending_factor: float = attrs.field(default=0.0, validator=number(low=0))
    covariance: CovarianceMode = attrs.field(
        default="auto", validator=one_of("required", "auto", "identity")
    )
    covariance_ridge: float = attrs.field(default=0.0, validator=number(low=0))
    contexts: tuple[tuple[int, int], ...] = attrs.field(
        default=((5, 10), (10, 10)), converter=pairs
    )
    context_seed: int | None = attrs.field(default=None, validator=whole(0))
    max_rel_norm: float | None = attrs.field(default=None, validator=number(above=0))

    @kl_prompts.validator
    def _check_kl_prompts(self, _: object, value: tuple[str, ...]) -> None:
        for template in value:
            if template.count(SLOT) != 1:
                raise refusal("kl_prompts", template, "a text with one {} for the subject")

    @contexts.validator
    def _check_contexts(self, _: object, value: tuple[tuple[int, int], ...]) -> None:
        for pair in value:
            if len(pair) != 2 or pair[0] < 1 or pair[1] < 0:
                raise refusal("contexts", pair, "pairs (tokens, number of texts), such as [5, 10]")
