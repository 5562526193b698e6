"""Runs as a report sees them: named, checked, and by stage.

Nothing in a folder is trusted: rows whose scores are no finite numbers, or whose texts are no
texts, are left out, counted and told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from editkit_core.bench.scenario import AFTER_ALL, AFTER_EDIT
from editkit_core.errors import InputNotFoundError
from editkit_core.metrics.report import Row

if TYPE_CHECKING:
    from editkit_core.bench.reading import Run
    from editkit_core.bench.record import Unit

__all__ = ["ReportedRun", "checkpoint_size", "find_runs", "read_runs"]

Json: TypeAlias = Mapping[str, Any]  # Any: JSON values
_TEXTS = ("metric", "probe", "protocol", "prompt", "expected", "text_before", "text_after", "unit")


@attrs.define(kw_only=True, slots=False)
class ReportedRun:
    """A run with what a report asks of it.

    Attributes:
        folder: The folder's last part; no path of this machine.
        run: What was read.
    """

    folder: str
    run: Run = attrs.field(repr=False)

    @property
    def meta(self) -> Json:
        """What ``run.json`` says."""
        return self.run.meta

    @property
    def plan(self) -> Json:
        """What was to be run."""
        return _mapping(self.meta.get("plan"))

    @property
    def data(self) -> Json:
        """The data set's name, digest, source, target policy and counts."""
        found = (self.meta.get(name) for name in ("dataset", "data_set", "data"))
        return next((value for value in found if isinstance(value, Mapping)), {})

    @property
    def model(self) -> Json:
        """The model's name, fingerprint, family and size."""
        found = self.meta.get("model")
        return found if isinstance(found, Mapping) else {"name": str(found or "")}

    @property
    def model_name(self) -> str:
        """The model's public name."""
        return str(self.model.get("name") or self.plan.get("model") or "unknown model")

    @property
    def method(self) -> str:
        """The method's id."""
        return str(self.plan.get("method") or self.folder)

    @property
    def scenario(self) -> str:
        """How the edits were put together, for example ``sequential:100``."""
        return str(self.plan.get("scenario") or "single")

    @property
    def target_policy(self) -> str:
        """Which of a data set's answers was the target."""
        return str(self.data.get("target_policy") or "")

    @cached_property
    def names(self) -> dict[int, str]:
        """Id of each request by its number; one that has none, or an earlier one's, gets #number.

        So a name belongs to one request, and the same request has it in another run too.
        """
        named: dict[int, str] = {}
        seen: set[str] = set()
        for unit in self.run.units:
            for number, name in zip(unit.indices, unit.requests, strict=False):
                if number in named:
                    continue
                named[number] = name if name and name not in seen else f"#{number}"
                seen.add(named[number])
        return named

    @cached_property
    def relations(self) -> dict[int, str]:
        """Relation of each request by its number, where it has one."""
        return {
            number: str(relation)
            for unit in self.run.units
            for number, relation in zip(unit.indices, unit.relations, strict=False)
            if relation
        }

    @cached_property
    def failed(self) -> tuple[Unit, ...]:
        """Units whose edit could not be made."""
        return self.run.failures

    @property
    def edits(self) -> tuple[Unit, ...]:
        """Units that made an edit."""
        made = self.run.of_stage(AFTER_EDIT)
        return tuple(unit for unit in made if unit.error is None)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that have rows: right after each edit, checkpoints in order, after all."""
        return tuple(sorted(self._rows, key=_stage_order))

    @property
    def last_stage(self) -> str:
        """The stage with all edits on the model; right after each edit where there is none."""
        return AFTER_ALL if AFTER_ALL in self._rows else AFTER_EDIT

    @property
    def unusable(self) -> int:
        """How many rows were left out because they are no measurements."""
        return sum(len(unit.rows) for unit in self.run.units) - sum(map(len, self._rows.values()))

    def rows(self, stage: str) -> tuple[Row, ...]:
        """Return the rows of a stage."""
        return self._rows.get(stage, ())

    @cached_property
    def _rows(self) -> dict[str, tuple[Row, ...]]:
        found: dict[str, list[Row]] = {}
        for unit in self.run.units:
            usable = [row for row in unit.rows if _is_measurement(row)]
            if usable:
                found.setdefault(str(unit.stage), []).extend(usable)
        return {stage: tuple(rows) for stage, rows in found.items()}


def checkpoint_size(stage: str) -> int | None:
    """Return N of ``checkpoint:N``, or None for another stage."""
    kind, _, number = stage.partition(":")
    return int(number) if kind == "checkpoint" and number.isdecimal() else None


def read_runs(folders: Iterable[Path]) -> list[ReportedRun]:
    """Read the runs in these folders and right below them, each once.

    Raises:
        InputNotFoundError: A folder does not exist, holds no run, or a damaged one.
    """
    from editkit_core.bench.reading import read_run

    return [
        ReportedRun(folder=folder.resolve().name, run=read_run(folder))
        for folder in find_runs(folders)
    ]


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Return the run folders among these and right below them, each once.

    Raises:
        InputNotFoundError: A folder does not exist, or holds no run.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        inside = [folder] if (folder / "run.json").is_file() else _below(folder)
        for run in inside:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputNotFoundError(f"There is no folder {folder}. Check the path.", path=str(folder))
    runs = sorted(path.parent for path in folder.glob("*/run.json"))
    if not runs:
        raise InputNotFoundError(
            f"{folder} holds no run: neither it nor a folder in it has a run.json. Give a folder "
            "that `editkit bench` wrote.",
            path=str(folder),
        )
    return runs


def _is_measurement(row: Row) -> bool:
    numbers = (row.before, row.after)
    return (
        all(isinstance(getattr(row, name), str) for name in _TEXTS)
        and isinstance(row.request, int)
        and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
    )


def _stage_order(stage: str) -> tuple[int, int, str]:
    size = checkpoint_size(stage)
    if size is not None:
        return 1, size, stage
    return {AFTER_EDIT: 0, AFTER_ALL: 2}.get(stage, 3), 0, stage


def _mapping(value: object) -> Json:
    return value if isinstance(value, Mapping) else {}
