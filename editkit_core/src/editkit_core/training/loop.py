"""The loop: batches, gradients, updates, validations, checkpoints.

Batch ``number`` of the whole training is the same whoever computes it: with several processes each
takes every so many of an update's batches, and their gradients are summed. What is drawn at random
in a batch depends on the seed and its number. So a run goes on from a checkpoint as if it had never
stopped, and several processes differ from one by the order of a sum alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from editkit_core.errors import InvalidParameterError, TrainingDivergedError, TrainingError
from editkit_core.training.checkpoint import Checkpoint, Counters
from editkit_core.training.data import EditExamples
from editkit_core.training.learner import TOTAL, Learner, TrainBatch
from editkit_core.training.logs import Logs
from editkit_core.training.options import Schedule
from editkit_core.training.processes import Processes
from editkit_core.training.randomness import seed_for
from editkit_core.training.validation import SCORE, Validation
from editkit_core.types import Progress

__all__ = ["Loop"]

_MOST_NAMED = 3


@attrs.define(kw_only=True, eq=False)
class Loop:
    """A training run in this process.

    Attributes:
        learner: What is trained.
        examples: What it is trained on.
        schedule: How.
        seed: Of every random choice.
        device: Where the learner computes.
        processes: Those that train together.
        validation: What early stopping looks at, or None.
        run: What the run depends on; a checkpoint keeps it.
        keep: Writes a checkpoint; only the main process calls it.
        keep_every: Updates between checkpoints.
        max_seconds: Ends training when it took so long.
        logs: Where numbers go.
        progress: Told of every update.
        counters: How far the run is.
    """

    learner: Learner
    examples: EditExamples
    schedule: Schedule
    seed: int
    device: torch.device
    processes: Processes
    validation: Validation | None
    run: Mapping[str, Any]  # Any: JSON values
    keep: Callable[[Checkpoint], None]
    keep_every: int
    max_seconds: float | None
    logs: Logs
    progress: Progress
    counters: Counters = attrs.field(factory=Counters)
    _best: Mapping[str, Tensor] = attrs.field(factory=dict, init=False)
    _kept: int = attrs.field(default=-1, init=False)
    _whole: bool = attrs.field(default=True, init=False)
    _module: nn.Module = attrs.field(init=False)
    _parameters: list[nn.Parameter] = attrs.field(init=False)
    _optimizer: torch.optim.Optimizer = attrs.field(init=False)
    _rates: list[float] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        if self.processes.size > self.schedule.accumulate:
            raise InvalidParameterError(
                f"{self.processes.size} processes share {self.schedule.accumulate} batches an "
                "update, so some would have nothing to do. Start fewer processes, or accumulate "
                "more.",
                parameter="accumulate",
            )
        self._module = self.learner.modules()
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.schedule.optimizer]
        self._optimizer = kind(
            [dict(group) for group in self.learner.groups()],
            weight_decay=self.schedule.weight_decay,
        )
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        if not self._parameters:
            raise TrainingError("The learner has no parameters to train.")

    # -- from and to checkpoints --

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self._module.load_state_dict(checkpoint.weights)
        self._best = {name: tensor.to(self.device) for name, tensor in checkpoint.best.items()}
        state = self._optimizer.state_dict()
        state["state"] = {number: dict(values) for number, values in checkpoint.optimizer.items()}
        self._optimizer.load_state_dict(state)
        self.counters = attrs.evolve(checkpoint.counters)
        self._kept = self.counters.step

    def checkpoint(self) -> Checkpoint:
        """Return where the run is now."""
        return Checkpoint(
            run=self.run,
            counters=attrs.evolve(self.counters),
            weights=self._module.state_dict(),
            best=self._best,
            optimizer=self._optimizer.state_dict()["state"],
        )

    # -- running --

    def go(self) -> str:
        """Train until it is over, and return why; the learner has the best weights then.

        Raises:
            TrainingDivergedError: A loss or a gradient is not finite; the weights of the update
                before are kept.
        """
        started = time.monotonic() - self.counters.seconds
        self.progress.start("training", self.schedule.steps)
        self.progress.advance(self.counters.step)
        try:
            return self._go(started)
        except KeyboardInterrupt:
            if self._whole:  # else the weights are half updated: go on from the one before
                self._keep()
            raise
        finally:
            self.progress.finish()

    def _go(self, started: float) -> str:
        reason = self._over()
        while True:
            self.counters.seconds = time.monotonic() - started
            if self._validates(over=bool(reason)):
                self._validate()
                reason = reason or self._over()
            if reason or self.counters.step % self.keep_every == 0:
                self._keep()
            if reason:
                break
            values = self._update()
            self.counters.step += 1
            self.logs.update(self.counters.step, {**values, "seconds": time.monotonic() - started})
            self.progress.advance(1, f"loss {values[TOTAL]:.3g}{self._told()}")
            reason = self._over()
        if self._best:
            self._module.load_state_dict(self._best)
        return reason

    def _over(self) -> str:
        """Return why training is over, or nothing."""
        counters, schedule = self.counters, self.schedule
        if counters.step >= schedule.steps:
            return "steps"
        if schedule.patience is not None and counters.stale >= schedule.patience:
            return "patience"
        if self.max_seconds is None:
            return ""
        late = counters.seconds >= self.max_seconds
        return "minutes" if self.processes.said_by_main(late, self.device) else ""

    def _told(self) -> str:
        best = self.counters.best.get(SCORE)
        return "" if best is None else f", best score {100 * best:.1f}"

    def _keep(self) -> None:
        if self.processes.is_main and self._kept != self.counters.step:
            self.keep(self.checkpoint())
        self._kept = self.counters.step

    # -- validating --

    def _validates(self, *, over: bool) -> bool:
        if self.validation is None or self.counters.validated == self.counters.step:
            return False
        every = self.schedule.validate_every
        return over or (every > 0 and self.counters.step % every == 0)

    def _validate(self) -> None:
        assert self.validation is not None  # asked for only then
        found = self.validation.measure(self.learner)
        counters = self.counters
        counters.validated = counters.step
        if not counters.best or found[SCORE] > counters.best[SCORE]:
            counters.best, counters.best_step, counters.stale = found, counters.step, 0
            self._best = {n: t.detach().clone() for n, t in self._module.state_dict().items()}
        else:
            counters.stale += 1
        self.logs.validation(counters.step, {**found, "seconds": counters.seconds})

    # -- one update --

    def _update(self) -> dict[str, float]:
        """Do one update; return the losses, the gradients' norm and the learning rate's factor."""
        self._optimizer.zero_grad(set_to_none=True)
        losses, bad = self._gradients()
        losses = self._summed(losses)
        limit = math.inf if self.schedule.clip is None else self.schedule.clip
        norm = float(nn.utils.clip_grad_norm_(self._parameters, limit))
        if not all(map(math.isfinite, (*losses.values(), norm))):
            self._optimizer.zero_grad(set_to_none=True)
            raise self._diverged(losses, norm, bad)
        factor = self.schedule.factor(self.counters.step)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._whole = False
        self._optimizer.step()
        self.learner.after_update(self.processes)
        self._whole = True
        return {**losses, "gradient_norm": norm, "rate_factor": factor}

    def _gradients(self) -> tuple[dict[str, float], list[str]]:
        """Add up the gradients of this process's batches; name the examples of a bad one."""
        sums: dict[str, float] = {}
        bad: list[str] = []
        count = self.schedule.accumulate
        for place in range(self.processes.rank, count, self.processes.size):
            batch = self._batch(self.counters.step * count + place)
            seed_for(self.seed, batch.number)
            with torch.enable_grad(), self.processes.autocast():
                losses = self.learner.loss(batch)
            total = losses[TOTAL]
            torch.autograd.backward(total / count)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + float(loss.detach()) / count
            if not bool(torch.isfinite(total.detach())):
                bad += [f"{' '.join(example.edit)!r}" for example in batch.examples]
        return sums, bad

    def _batch(self, number: int) -> TrainBatch:
        size = self.schedule.batch
        return TrainBatch(examples=self.examples.take(number * size, size), number=number)

    def _summed(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Sum gradients and losses over the processes."""
        if self.processes.size == 1:
            return dict(losses)
        has = torch.tensor([float(p.grad is not None) for p in self._parameters])
        anywhere = self.processes.sum(has.to(self.device))
        for parameter, count in zip(self._parameters, anywhere.tolist(), strict=True):
            if count:
                mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.processes.sum(mine)
        names = sorted(losses)
        values = torch.tensor([losses[name] for name in names], dtype=torch.float32)
        sums = self.processes.sum(values.to(self.device)).tolist()
        return dict(zip(names, sums, strict=True))

    def _diverged(
        self, losses: Mapping[str, float], norm: float, bad: list[str]
    ) -> TrainingDivergedError:
        self._keep()  # the weights are still those of the update before
        named = self.processes.gathered(bad)
        what = f"the loss is {losses[TOTAL]}" if named else f"the gradients' norm is {norm}"
        where = f" at {', '.join(named[:_MOST_NAMED])}" if named else ""
        more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        return TrainingDivergedError(
            f"Training stopped in update {self.counters.step + 1}: {what}{where}{more}. The "
            f"weights of update {self.counters.step} are the last good ones",
            step=self.counters.step,
            loss=losses[TOTAL],
            gradient_norm=norm,
            examples=tuple(named),
        )
