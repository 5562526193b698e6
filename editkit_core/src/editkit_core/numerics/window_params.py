"""What the methods that spread a batch of edits over a window of layers have in common.

A method derives its parameters from :class:`WindowParams` and adds its own. Nothing here imports
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import attrs

from editkit_core.types import SLOT, TokenPosition
from editkit_core.validators import (
    listed,
    number,
    one_of,
    pairs,
    refusal,
    rising_layers,
    texts,
    whole,
)

if TYPE_CHECKING:
    from editkit_core.numerics.value_loss import ValueSettings

Spread = Literal["linear", "sqrt"]

__all__ = ["Spread", "WindowParams"]


@attrs.frozen(kw_only=True)
class WindowParams:
    """Where a batch is written, and how its target values are found.

    Sources: [1] Meng et al. 2023 (MEMIT), [2] Meng et al. 2022 (ROME), or ours.

    Attributes:
        layers: Blocks whose feed-forward down projections are edited, rising; the values are found
            at the last one. None means those from ``first_fraction`` to ``last_fraction`` of the
            depth. Source: [1].
        first_fraction: Share of the depth of the first layer, used when ``layers`` is not given.
            Source: ours.
        last_fraction: Share of the depth of the last layer. Source: ours.
        fact_token: The token whose state is read and written. Source: [1].
        spread: Which part of what is missing a layer takes on, with q layers still to come:
            ``linear`` 1/q, ``sqrt`` 1/√q. Source: [1]; the second is PMET's.
        key_from: Texts whose keys count: ``prompt``: the prompt after each context, as in the
            paper; ``mention``: the subject alone after each context; ``both``: their mean.
            Source: ours.
        v_steps: Iterations of the values' optimisation; one less is the most updates. Source: [1].
        v_lr: Adam's learning rate, absolute or relative (see ``v_lr_mode``). Source: [1].
        v_lr_mode: ``absolute`` as in the paper; ``relative``: a share of the residual stream's
            root mean square. Source: ours.
        v_insertion: What the optimisation changes: ``token``: the subject's token alone, as in the
            paper; ``rank_one``: every token, as one edit alone at the last layer would; ``joint``:
            every token, as the finished change of the whole batch will, the values of all edits
            trained together; for windows of one layer. Source: the last two are ours.
        v_weight_decay: Weight of the penalty on a value's change. Source: [1].
        clamp_norm: Largest change of a value, as a multiple of what ``clamp_mode`` names.
            Source: [1].
        clamp_mode: ``value``: the norm of the block's old output, as in the paper; ``stream``: its
            mean norm over the contexts. Source: ours.
        loss_stop: A request's optimisation stops at a loss below this. Source: [1].
        probability_stop: It also stops when the target is at least this probable, mean over the
            contexts; none goes by the loss alone. Source: ours.
        kl_factor: Weight of the drift penalty on ``kl_prompts``. Source: [1].
        kl_prompts: Templates with ``{}`` for the subject whose next token is to stay. Source: [1].
        kl_position: Where these are read: ``subject_last`` as in the first code, or
            ``prompt_last``. Source: [2].
        ending_factor: Weight of the penalty on changing what is said right after the target.
            Source: ours.
        keep_factor: Weight of the change that other text sees by the key statistics, while values
            are trained; with ``v_insertion=joint``. Source: ours.
        covariance: ``required``: key statistics must exist; ``auto``: otherwise they are made from
            text the model samples, and kept; ``identity``: never used. Source: [1] requires them.
        covariance_ridge: Share of the statistics' mean diagonal that is added to the diagonal.
            Source: ours.
        contexts: Pairs (tokens, number of texts) of sampled texts put before the prompt; the bare
            prompt's key counts as much as all of them together. Source: [1].
        context_seed: Seed of these texts; none takes the edit's seed. Source: ours.
        value_batch: Requests whose values are optimised at once; memory grows with it, and fewer
            are taken where it would not suffice. Source: ours.
        edits_at_once: Most edits that are solved together. More are computed in parts, each on top
            of those before it, whose keys are protected. None takes as many as memory allows; a
            patch made in parts says how many. Source: ours.
        memory_gb: Most memory, in 10⁹ bytes, that an edit may take beside the model and its
            statistics, as far as an estimate goes; none takes 80 % of what is free. Source: ours.
        history: Whether keys of earlier patches of the method on the model are protected: the
            change is to be 0 on them. They come from these patches. Source: Fang et al. 2025.
        duplicates: Requests about one fact in one batch: ``refuse`` them, or ``keep_last`` takes
            the last of them. Source: ours.
        max_rel_norm: Refuse a change larger than this share of a weight, in Frobenius norm; none
            accepts any. Source: ours.
    """

    layers: tuple[int, ...] | None = attrs.field(
        default=None, converter=listed, validator=rising_layers
    )
    first_fraction: float = attrs.field(default=0.15, validator=number(low=0, high=1))
    last_fraction: float = attrs.field(default=0.3, validator=number(low=0, high=1))
    fact_token: TokenPosition = attrs.field(
        default="subject_last",
        validator=one_of("subject_last", "subject_first", "subject_first_after_last", "last"),
    )
    spread: Spread = attrs.field(default="linear", validator=one_of("linear", "sqrt"))
    key_from: Literal["prompt", "mention", "both"] = attrs.field(
        default="prompt", validator=one_of("prompt", "mention", "both")
    )
    v_steps: int = attrs.field(default=25, validator=whole(1))
    v_lr: float = attrs.field(default=0.3, validator=number(above=0))
    v_lr_mode: Literal["absolute", "relative"] = attrs.field(
        default="relative", validator=one_of("absolute", "relative")
    )
    v_insertion: Literal["token", "rank_one", "joint"] = attrs.field(
        default="token", validator=one_of("token", "rank_one", "joint")
    )
    v_weight_decay: float = attrs.field(default=1e-3, validator=number(low=0))
    clamp_norm: float = attrs.field(default=2.0, validator=number(above=0))
    clamp_mode: Literal["value", "stream"] = attrs.field(
        default="stream", validator=one_of("value", "stream")
    )
    loss_stop: float = attrs.field(default=0.05, validator=number(low=0))
    probability_stop: float | None = attrs.field(default=None, validator=number(above=0, high=1))
    kl_factor: float = attrs.field(default=0.0625, validator=number(low=0))
    kl_prompts: tuple[str, ...] = attrs.field(default=("{} is a",), converter=texts)
    kl_position: Literal["subject_last", "prompt_last"] = attrs.field(
        default="subject_last", validator=one_of("subject_last", "prompt_last")
    )
    ending_factor: float = attrs.field(default=0.0, validator=number(low=0))
    keep_factor: float = attrs.field(default=0.0, validator=number(low=0))
    covariance: Literal["required", "auto", "identity"] = attrs.field(
        default="auto", validator=one_of("required", "auto", "identity")
    )
    covariance_ridge: float = attrs.field(default=0.0, validator=number(low=0))
    contexts: tuple[tuple[int, int], ...] = attrs.field(default=((10, 5),), converter=pairs)
    context_seed: int | None = attrs.field(default=None, validator=whole(0))
    value_batch: int = attrs.field(default=8, validator=whole(1))
    edits_at_once: int | None = attrs.field(default=None, validator=whole(1))
    memory_gb: float | None = attrs.field(default=None, validator=number(above=0))
    history: bool = False
    duplicates: Literal["refuse", "keep_last"] = attrs.field(
        default="refuse", validator=one_of("refuse", "keep_last")
    )
    max_rel_norm: float | None = attrs.field(default=None, validator=number(above=0))

    @kl_prompts.validator
    def _check_kl_prompts(self, _: object, value: tuple[str, ...]) -> None:
        for template in value:
            if template.count(SLOT) != 1:
                raise refusal("kl_prompts", template, "a text with one {} for the subject")

    @contexts.validator
    def _check_contexts(self, _: object, value: tuple[tuple[int, ...], ...]) -> None:
        for pair in value:
            if len(pair) != 2 or pair[0] < 1 or pair[1] < 0:
                raise refusal("contexts", pair, "pairs (tokens, number of texts), such as [10, 5]")

    def window(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers to edit of a model with ``n_layers`` blocks."""
        if self.layers is not None:
            return self.layers
        first, last = (
            min(int(share * n_layers + 0.5), n_layers - 1)
            for share in (self.first_fraction, self.last_fraction)
        )
        return tuple(range(min(first, last), last + 1))

    def value_settings(self, **more: Any) -> ValueSettings:  # Any: fields of ValueSettings
        """Return how values are optimised; ``more`` are fields a method sets itself."""
        from editkit_core.numerics.value_loss import ValueSettings

        shared: dict[str, Any] = {  # Any: fields of several types
            "steps": self.v_steps,
            "lr": self.v_lr,
            "lr_mode": self.v_lr_mode,
            "weight_decay": self.v_weight_decay,
            "clamp_norm": self.clamp_norm,
            "clamp_mode": self.clamp_mode,
            "loss_stop": self.loss_stop,
            "probability_stop": self.probability_stop,
            "kl_factor": self.kl_factor,
            "kl_prompts": self.kl_prompts,
            "kl_position": self.kl_position,
            "ending_factor": self.ending_factor,
            "output": "block",
        }
        return ValueSettings(**{**shared, **more})
