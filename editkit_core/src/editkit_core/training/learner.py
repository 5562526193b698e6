"""What a method gives to the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import attrs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from editkit_core.training.data import EditExample
    from editkit_core.types import EditRequest

__all__ = ["Learner", "TrainBatch", "World"]

TOTAL = "total"


@attrs.frozen(kw_only=True)
class TrainBatch:
    """Examples that a loss is computed of.

    Attributes:
        examples: The examples; each is an edit of its own.
        number: Which batch of the whole training it is, from 0. Equal numbers are equal batches.
    """

    examples: tuple[EditExample, ...]
    number: int

    def __len__(self) -> int:
        return len(self.examples)


class World(Protocol):
    """The processes that train together; one is the usual case."""

    @property
    def size(self) -> int:
        """Number of processes."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors of one shape."""


class Learner(Protocol):
    """An editor that is being trained for one model. The model itself is frozen.

    Random numbers drawn by torch, numpy or ``random`` inside `loss` depend on the seed and on
    `TrainBatch.number` alone, so a run that was stopped goes on as if it never had been.
    """

    def modules(self) -> nn.Module:
        """Return what is trained; its state dict, buffers too, is what a checkpoint keeps."""

    def groups(self) -> Sequence[dict[str, Any]]:  # Any: torch's parameter groups
        """Return the parameter groups for the optimiser, each with its ``lr``."""

    def loss(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        """Return named losses, scalars, each a mean over the batch's examples.

        ``total`` is the one whose gradient is taken; the others are logged.
        """

    def editing(self, requests: Sequence[EditRequest]) -> AbstractContextManager[object]:
        """Return a context in which the model is edited by the learner, as an edit would be."""

    def after_update(self, world: World) -> None:
        """Do what is due after each update, in every process: merge running statistics."""

    def export(self) -> Mapping[str, Tensor]:
        """Return the tensors that the artifact keeps."""
