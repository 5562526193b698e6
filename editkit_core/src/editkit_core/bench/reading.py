"""Reading a run back: what was planned, and every unit that was finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from editkit_core.bench.folder import ROWS, parse_units, read_meta, split_torn
from editkit_core.bench.record import Unit
from editkit_core.bench.scenario import AFTER_EDIT
from editkit_core.errors import InputNotFoundError
from editkit_core.metrics.report import Report, Row, Score

if TYPE_CHECKING:
    from editkit_core.metrics.metric import DerivedMetric

__all__ = ["Run", "read_run"]


@attrs.frozen
class Run:
    """A run as far as it went.

    Attributes:
        meta: What ``run.json`` says.
        units: The finished units, in order.
    """

    meta: dict[str, Any] = attrs.field(repr=False)  # Any: JSON values
    units: tuple[Unit, ...] = attrs.field(repr=False)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that have units, in the order they were first reached."""
        return tuple(dict.fromkeys(unit.stage for unit in self.units))

    @property
    def failures(self) -> tuple[Unit, ...]:
        """The edits that could not be made."""
        return tuple(unit for unit in self.units if unit.error is not None)

    @property
    def finished(self) -> bool:
        """Whether every unit of the plan is there."""
        return len(self.units) == self.meta.get("units")

    def of_stage(self, stage: str) -> Iterator[Unit]:
        """Yield the units of a stage."""
        return (unit for unit in self.units if unit.stage == stage)

    def rows(self, stage: str = AFTER_EDIT) -> tuple[Row, ...]:
        """Return every row of a stage; their ``request`` numbers the run's requests."""
        return tuple(row for unit in self.of_stage(stage) for row in unit.rows)

    def scores(
        self, stage: str = AFTER_EDIT, derived: Sequence[DerivedMetric] = ()
    ) -> tuple[Score, ...]:
        """Return the means of a stage by metric, probe type and protocol; see `Report.scores`."""
        return Report(self.rows(stage)).scores(derived)


def read_run(folder: str | Path) -> Run:
    """Read a run, finished or not; the folder is left as it is.

    Raises:
        InputNotFoundError: The folder holds no run, or a damaged one.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    path = folder / ROWS
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputNotFoundError(f"Cannot read {path}: {error}.", path=str(path)) from error
    return Run(meta, tuple(parse_units(split_torn(data)[0], path)))
