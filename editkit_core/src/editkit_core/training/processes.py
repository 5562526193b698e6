"""The processes that train together, as accelerate started them; one is the usual case."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor

from editkit_core.errors import MissingExtraError, TrainingError

__all__ = ["Processes"]

T = TypeVar("T")


class Processes:
    """Sums and lists over all processes; with one process they give back what they get.

    Raises:
        MissingExtraError: accelerate is not installed.
        TrainingError: It was set up for half precision with a loss scale.
    """

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise MissingExtraError(
                "Training needs accelerate, which is not installed. Run: pip install "
                '"editkit-core[train]"'
            ) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on how many threads it chose
            self._accelerator = Accelerator()
        if self._accelerator.mixed_precision not in ("no", "bf16"):
            raise TrainingError(
                f"accelerate was asked for mixed precision {self._accelerator.mixed_precision!r}; "
                "editors are trained in full precision or bf16. Start it with "
                "--mixed_precision bf16, or no.",
                mixed_precision=self._accelerator.mixed_precision,
            )

    @property
    def size(self) -> int:
        """Number of processes."""
        return int(self._accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self._accelerator.process_index)

    @property
    def device(self) -> torch.device:
        """The device that is this process's own: an accelerator where there is one."""
        device: torch.device = self._accelerator.device
        return device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors of one shape."""
        if self.size == 1:
            return tensor
        total = self._accelerator.reduce(tensor, reduction="sum")
        assert isinstance(total, Tensor)  # it was given one
        return total

    def gathered(self, items: Iterable[T]) -> list[T]:
        """Return all processes' items, those of the first process first."""
        if self.size == 1:
            return list(items)
        from accelerate.utils import gather_object

        found: list[T] = gather_object(list(items))
        return found

    def said_by_main(self, value: bool, device: torch.device) -> bool:
        """Return what the main process says, in every process."""
        flag = torch.tensor(float(value and self.is_main), device=device)
        return bool(self.sum(flag).item())

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context that computes in the precision that accelerate was set up for."""
        context: AbstractContextManager[object] = self._accelerator.autocast()
        return context

    def wait(self) -> None:
        """Wait until every process is here."""
        self._accelerator.wait_for_everyone()
