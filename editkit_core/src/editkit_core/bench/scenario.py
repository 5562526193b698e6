"""Scenarios: which edits are on the model when what is measured.

==================  ============================================================================
``single``          Each edit alone on the base, measured, taken off.
``batch:N``         N edits asked for together in one call, measured, taken off.
``sequential``      Each edit computed on top of the earlier ones; ``sequential:N`` goes back to
                    the base after every N edits.
``stacked``         Each edit computed alone on the base; then all of them on the model together.
==================  ============================================================================

A scenario comes to a list of steps, fixed by the data set alone, so a run that was stopped knows
where it was. Requests that belong together (see ``EditRequest.group``) are always edited together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal, get_args

import attrs

from editkit_core.errors import InvalidParameterError, did_you_mean

__all__ = ["AFTER_ALL", "AFTER_EDIT", "Scenario", "Step", "checkpoint", "checkpoints"]

Name = Literal["single", "batch", "sequential", "stacked"]
AFTER_EDIT = "after_edit"
AFTER_ALL = "after_all"
MEASURED_TOGETHER = 500  # requests a line of the file; what a stop in the middle costs
_TEXT = re.compile(r"([a-z]+)(?::(\d+))?")
_ABOUT = "single, batch:N, sequential, sequential:N or stacked"


@attrs.frozen(kw_only=True)
class Step:
    """One piece of work; it gives one line of the run's file.

    Attributes:
        unit: Its number, counted from 0.
        stage: ``after_edit``, ``checkpoint:N`` or ``after_all``.
        sequence: Number of the sequence of edits it belongs to, counted from 0.
        indices: Numbers of the requests that are edited, or for other stages measured.
        begin: Number of the first request of the sequence.
        upto: Number after the last request whose edit is on the model while measuring.
    """

    unit: int
    stage: str
    sequence: int
    indices: tuple[int, ...]
    begin: int
    upto: int

    @property
    def edits(self) -> bool:
        """Whether it makes an edit."""
        return self.stage == AFTER_EDIT


@attrs.frozen
class Scenario:
    """A scenario and its size.

    Attributes:
        name: Which.
        size: Edits a batch, or a sequence (None: one sequence of all).
    """

    name: Name
    size: int | None = None

    @classmethod
    def parse(cls, text: str) -> Scenario:
        """Read ``single``, ``batch:N``, ``sequential``, ``sequential:N`` or ``stacked``.

        Raises:
            InvalidParameterError: It is none of them.
        """
        found = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if found is None or found[1] not in get_args(Name):
            near = did_you_mean(str(text).partition(":")[0], get_args(Name))
            raise InvalidParameterError(
                f"There is no scenario {text!r}.{near} Known: {_ABOUT}.", scenario=text
            )
        size = int(found[2]) if found[2] else None
        name: Name = found[1]  # type: ignore[assignment]  # one of the names, as just checked
        missing = name == "batch" and size is None
        refused = name in ("single", "stacked") and size is not None
        if size == 0 or missing or refused:
            raise InvalidParameterError(
                f"The scenario {text!r} has no such size. Write {_ABOUT}, with N from 1.",
                scenario=text,
            )
        return cls(name, size)

    def __str__(self) -> str:
        return self.name if self.size is None else f"{self.name}:{self.size}"

    def steps(self, groups: Sequence[int]) -> tuple[Step, ...]:
        """Return the work, in order.

        Args:
            groups: How many requests belong to each group; the requests are numbered on through
                the groups, and a group is edited in one call.
        """
        parts = self._steps(_numbered(groups))
        return tuple(attrs.evolve(step, unit=unit) for unit, step in enumerate(parts))

    def _steps(self, groups: list[tuple[int, ...]]) -> Iterator[Step]:
        if self.name in ("single", "batch"):
            for number, indices in enumerate(_packed(groups, self.size or 1)):
                yield _edit(number, [indices], 0)
        elif self.name == "stacked":
            for place in range(len(groups)):
                yield _edit(0, groups, place)
            for place in range(len(groups)):
                yield from _measures(0, groups, place)
        else:
            total = sum(map(len, groups))
            for number, sequence in enumerate(_cut(groups, self.size or total)):
                for place in range(len(sequence)):
                    yield _edit(number, sequence, place)
                    yield from _measures(number, sequence, place)


def checkpoint(count: int) -> str:
    """Return the stage in which so many edits are on the model."""
    return f"checkpoint:{count}"


def checkpoints(total: int) -> tuple[int, ...]:
    """Return 1, 10, 100 … up to a number of edits."""
    return tuple(10**power for power in range(len(str(max(total, 0)))) if 10**power <= total)


def _numbered(groups: Sequence[int]) -> list[tuple[int, ...]]:
    ends = accumulate(groups)
    return [tuple(range(end - size, end)) for size, end in zip(groups, ends, strict=True)]


def _packed(groups: Sequence[tuple[int, ...]], size: int) -> Iterator[tuple[int, ...]]:
    for part in _cut(groups, size):
        yield tuple(index for indices in part for index in indices)


def _cut(groups: Sequence[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    """Cut groups into parts of at least ``size`` requests; the last one may be smaller."""
    part: list[tuple[int, ...]] = []
    held = 0
    for indices in groups:
        part.append(indices)
        held += len(indices)
        if held >= size:
            yield part
            part, held = [], 0
    if part:
        yield part


def _edit(sequence: int, groups: Sequence[tuple[int, ...]], place: int) -> Step:
    indices = groups[place]
    return Step(
        unit=0,
        stage=AFTER_EDIT,
        sequence=sequence,
        indices=indices,
        begin=groups[0][0],
        upto=indices[-1] + 1,
    )


def _measures(sequence: int, groups: Sequence[tuple[int, ...]], place: int) -> Iterator[Step]:
    """Yield what is measured once the edit at a place is on the model too."""
    begin, upto = groups[0][0], groups[place][-1] + 1
    before, count = groups[place][0] - begin, upto - begin
    stages = [checkpoint(n) for n in checkpoints(count) if n > before]
    if place == len(groups) - 1:
        stages.append(AFTER_ALL)
    for stage in stages:
        for first in range(begin, upto, MEASURED_TOGETHER):
            indices = tuple(range(first, min(first + MEASURED_TOGETHER, upto)))
            yield Step(
                unit=0, stage=stage, sequence=sequence, indices=indices, begin=begin, upto=upto
            )
