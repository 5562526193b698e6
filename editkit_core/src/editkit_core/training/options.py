"""What a training run is told: the method's schedule, and how the run is kept and ended."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import attrs

from editkit_core.validators import number, refusal, whole

if TYPE_CHECKING:
    from editkit_core.data.dataset import DataSet

__all__ = ["Decay", "Optimizer", "Schedule", "TrainingOptions"]

Optimizer = Literal["adam", "adamw"]
Decay = Literal["none", "linear", "cosine"]


@attrs.frozen(kw_only=True)
class Schedule:
    """How the weights of an editor are learned; a method fills it from its parameters.

    One update takes ``batch * accumulate`` examples, on however many processes.

    Attributes:
        steps: Most updates of the weights.
        batch: Examples that `Learner.loss` gets at a time.
        accumulate: Such batches an update; their gradients are averaged.
        clip: Largest norm of all gradients together; None leaves them as they are.
        optimizer: ``adam``, or ``adamw`` with decoupled weight decay. Learning rates stand in
            `Learner.groups`.
        weight_decay: For groups that set none.
        warmup: Updates in which the learning rates rise to their full size.
        decay: How they fall to 0 at the last update after that, if at all.
        validate_every: Updates between validations; 0 validates at the end alone.
        patience: Validations in a row without a better score that end training; None never does.
    """

    steps: int = attrs.field(validator=whole(1))
    batch: int = attrs.field(default=1, validator=whole(1))
    accumulate: int = attrs.field(default=1, validator=whole(1))
    clip: float | None = attrs.field(default=None, validator=number(above=0))
    optimizer: Optimizer = attrs.field(default="adam")
    weight_decay: float = attrs.field(default=0.0, validator=number(low=0))
    warmup: int = attrs.field(default=0, validator=whole(0))
    decay: Decay = attrs.field(default="none")
    validate_every: int = attrs.field(default=100, validator=whole(0))
    patience: int | None = attrs.field(default=None, validator=whole(1))

    @optimizer.validator
    @decay.validator
    def _check_word(self, field: attrs.Attribute[str], value: str) -> None:
        known = get_args(Optimizer if field.name == "optimizer" else Decay)
        if value not in known:
            raise refusal(field.name, value, f"one of {', '.join(known)}")

    def factor(self, step: int) -> float:
        """Return what the learning rates are multiplied with in update ``step``, from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.decay == "none":
            return 1.0
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2


@attrs.frozen(kw_only=True)
class TrainingOptions:
    """How a training run is kept and when it ends; nothing here belongs to a method.

    Attributes:
        folder: Where checkpoints, logs and the editor go; None keeps nothing on disk. A run that
            was stopped goes on from the checkpoint in it.
        fresh: Start again even where the folder holds a run.
        validation: Requests that early stopping looks at; None sets some of the data set apart.
        validation_share: Share of the subjects that are set apart then; 0 sets none apart.
        validation_limit: Most requests a validation measures.
        max_minutes: Ends training when it took so long, all its starts together.
        checkpoint_every: Updates between checkpoints.
        tensorboard: Whether to write TensorBoard's files; None where it is installed.
    """

    folder: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    fresh: bool = False
    validation: DataSet | None = attrs.field(default=None, repr=False)
    validation_share: float = attrs.field(default=0.1, validator=number(low=0, high=0.9))
    validation_limit: int = attrs.field(default=100, validator=whole(1))
    max_minutes: float | None = attrs.field(default=None, validator=number(low=0))
    checkpoint_every: int = attrs.field(default=100, validator=whole(1))
    tensorboard: bool | None = None
