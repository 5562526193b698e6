"""The processes that sum key statistics together.

Each takes its share of the documents; the first adds up what all found, always in the documents'
order, so that the sum has the same bits for any number of processes. They talk over gloo, on the
CPU, whatever the models run on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from editkit_core.errors import EditkitError

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # a round is one chunk of documents on every process
_MEET = timedelta(minutes=5)
_HERE = "127.0.0.1"

__all__ = ["Alone", "Group", "Meeting", "Processes", "joined", "started_outside"]


class Group(Protocol):
    """Processes numbered from 0; number 0 keeps the sums and writes them."""

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def size(self) -> int:
        """How many there are."""

    def from_first(self, value: T) -> T:
        """Return what the first process gave."""

    def from_all(self, value: T) -> list[T]:
        """Return what each process gave, the first one's first."""

    def send(self, tensor: Tensor) -> None:
        """Give the first process a tensor."""

    def receive(self, into: Tensor, rank: int) -> None:
        """Fill a tensor with what a process sends."""


class Alone:
    """One process."""

    rank = 0
    size = 1

    def from_first(self, value: T) -> T:
        """Return the value."""
        return value

    def from_all(self, value: T) -> list[T]:
        """Return the value in a list."""
        return [value]

    def send(self, tensor: Tensor) -> None:
        """There is nobody to give anything."""
        raise AssertionError("one process sends nothing")

    def receive(self, into: Tensor, rank: int) -> None:
        """There is nobody to get anything from."""
        raise AssertionError("one process gets nothing")


class Processes:
    """The processes of torch's default process group."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist: Any = dist  # Any: torch's stubs lack parts of it
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()

    def from_first(self, value: T) -> T:
        """Return what the first process gave."""
        box = [value]
        with _told():
            self._dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_all(self, value: T) -> list[T]:
        """Return what each process gave."""
        found: list[Any] = [None] * self.size  # Any: filled by torch
        with _told():
            self._dist.all_gather_object(found, value)
        return found

    def send(self, tensor: Tensor) -> None:
        """Give the first process a tensor."""
        with _told():
            self._dist.send(tensor.cpu(), dst=0)

    def receive(self, into: Tensor, rank: int) -> None:
        """Fill a tensor with what a process sends."""
        with _told():
            self._dist.recv(into, src=rank)


class Meeting:
    """Where processes of this machine find each other; the first one opens it.

    Args:
        size: How many processes will come.
    """

    def __init__(self, size: int) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__

        self.size = size
        self._store = TCPStore(_HERE, 0, size, True, _MEET, wait_for_workers=False)

    @property
    def port(self) -> int:
        """The port to join at."""
        return int(self._store.port)

    @contextmanager
    def opened(self) -> Iterator[Processes]:
        """Wait for the others and be the first process."""
        with _joined(store=self._store, rank=0, world_size=self.size) as group:
            yield group


@contextmanager
def joined(rank: int, size: int, port: int) -> Iterator[Processes]:
    """Join a meeting of this machine as a process other than the first."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__

    with _told():
        store = TCPStore(_HERE, port, size, False, _MEET)
    with _joined(store=store, rank=rank, world_size=size) as group:
        yield group


@contextmanager
def started_outside() -> Iterator[Group]:
    """Join the processes that ``accelerate launch`` or ``torchrun`` started; one is the usual case.

    They are told apart by the variables ``RANK`` and ``WORLD_SIZE`` that both set.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield Alone()
        return
    with _joined(init_method="env://") as group:
        yield group


@contextmanager
def _joined(**how: Any) -> Iterator[Processes]:  # Any: arguments of init_process_group
    import torch.distributed as dist

    with _told():
        dist.init_process_group("gloo", timeout=PATIENCE, **how)
    try:
        yield Processes()
    finally:
        dist.destroy_process_group()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's own error for a peer that is gone
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise EditkitError(
            "A process that summed key statistics with this one is gone: "
            f"{str(error).splitlines()[0]} What was saved is kept; the same command goes on from "
            "there.",
            gone=True,
        ) from error
