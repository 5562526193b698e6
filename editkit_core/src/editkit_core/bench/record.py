"""One line of a run's file: a finished unit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from editkit_core.errors import EditkitError
from editkit_core.metrics.report import Facts, Measured, Row

__all__ = ["Failure", "Unit"]


@attrs.frozen(kw_only=True)
class Failure:
    """Why an edit could not be made.

    Attributes:
        code: The error's code.
        message: What happened.
    """

    code: str
    message: str

    @classmethod
    def of(cls, error: EditkitError) -> Failure:
        """Return what an error says."""
        return cls(code=error.code, message=error.message)


def _texts(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


def _perhaps_texts(value: Iterable[str | None]) -> tuple[str | None, ...]:
    return tuple(value)


def _numbers(value: Iterable[int]) -> tuple[int, ...]:
    return tuple(value)


@attrs.frozen(kw_only=True)
class Unit:
    """A finished piece of work.

    Attributes:
        unit: Its number, counted from 0.
        stage: ``after_edit``, ``checkpoint:N`` or ``after_all``.
        sequence: Number of its sequence of edits.
        requests: The requests' ids.
        relations: Their relations; empty where none has one.
        indices: Their numbers; rows name them so.
        patch: Id of the patch that was made, or None.
        seconds: Wall-clock seconds by stage of the work.
        peak_bytes: The process's peak memory so far, bytes, by stage of the work.
        device_peak_bytes: The accelerator's peak memory, bytes, by stage of the work.
        error: Why there is no patch and there are no rows, or None.
        conflicts: What the patches on the model do to one another: counts by kind and some of them.
        measured: The rows, and what is true of all of them.
    """

    unit: int
    stage: str
    sequence: int = 0
    requests: tuple[str, ...] = attrs.field(converter=_texts)
    relations: tuple[str | None, ...] = attrs.field(default=(), converter=_perhaps_texts)
    indices: tuple[int, ...] = attrs.field(converter=_numbers)
    patch: str | None = None
    seconds: Mapping[str, float] = attrs.field(factory=dict)
    peak_bytes: Mapping[str, int] = attrs.field(factory=dict)
    device_peak_bytes: Mapping[str, int] = attrs.field(factory=dict)
    error: Failure | None = None
    conflicts: Mapping[str, Any] | None = None  # Any: JSON values
    measured: Measured = attrs.field(factory=lambda: Measured((), Facts()))

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows."""
        return self.measured.rows

    def to_line(self) -> bytes:
        """Return the unit as one line of JSON."""
        plain = attrs.asdict(self, filter=lambda field, _: field.name != "measured")
        if self.conflicts is None:
            del plain["conflicts"]
        if not any(self.relations):
            del plain["relations"]
        text = json.dumps({**plain, **self.measured.to_record()}, separators=(",", ":"))
        return text.encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Unit:
        """Return what `to_line` was called on; names it does not know are ignored.

        Raises:
            ValueError, TypeError, KeyError: It is not such a line.
        """
        plain = json.loads(line)
        names = {field.name for field in attrs.fields(cls)} - {"measured", "error"}
        error = plain["error"]
        return cls(
            **{name: value for name, value in plain.items() if name in names},
            error=None if error is None else Failure(**error),
            measured=Measured.from_record(plain),
        )
