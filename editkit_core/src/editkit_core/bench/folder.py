"""A run's folder: who may write into it, and its file of units.

``rows.jsonl`` only grows, by whole lines that are on disk before the next unit begins. What a crash
cut short is cut off when the run goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import filelock

from editkit_core.atomic import sync_folder, write_file
from editkit_core.bench.plan import Plan
from editkit_core.bench.record import Unit
from editkit_core.bench.scenario import Step
from editkit_core.errors import InputNotFoundError, OutputExistsError, WriteFailedError

__all__ = ["RunFolder"]

SPEC = "editkit.run/1"
META = "run.json"
ROWS = "rows.jsonl"
SUMMARY = "summary.json"
REPLIES = "replies"
PATCHES = "patches"
_LOCK = ".lock"
Json = dict[str, Any]  # Any: JSON values


@attrs.frozen
class RunFolder:
    """A folder that a run is written into.

    Attributes:
        path: The folder; it need not exist.
    """

    path: Path

    def meta(self) -> Json | None:
        """Return what ``run.json`` says, or None when nothing is there yet.

        Raises:
            OutputExistsError: The folder holds something else than a run.
            InputNotFoundError: ``run.json`` cannot be read.
        """
        if (self.path / META).exists():
            return read_meta(self.path)
        if self.path.exists():
            known = {_LOCK, REPLIES}
            others = sorted(p.name for p in _entries(self.path) if p.name not in known)
            if others:
                raise OutputExistsError(
                    f"{self.path} holds {others[0]} and no {META}, so it is not the folder of a "
                    "run. Choose another --out.",
                    path=str(self.path),
                )
        return None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing into the folder meanwhile.

        Raises:
            OutputExistsError: One is writing into it now.
            WriteFailedError: The folder cannot be made.
        """
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / _LOCK)
        with _writing(self.path):
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout as error:  # an OSError too
                raise OutputExistsError(
                    f"Another process is writing the run in {self.path} now. Wait for it, or "
                    "choose another --out.",
                    path=str(self.path),
                ) from error
        try:
            yield
        finally:
            lock.release()

    def begin(self, meta: Json) -> None:
        """Write ``run.json`` if it is not there."""
        if not (self.path / META).exists():
            self._write(META, meta)

    def finish(self, summary: Json) -> None:
        """Write ``summary.json``."""
        self._write(SUMMARY, summary)

    def repaired(self, steps: Sequence[Step]) -> list[Unit]:
        """Cut off what a crash left half-written, and return the finished units.

        Raises:
            InputNotFoundError: A line is damaged, or is not the unit that belongs there.
        """
        path = self.path / ROWS
        if not path.exists():
            return []
        whole, torn = split_torn(path.read_bytes())
        if torn:
            with _writing(path), path.open("r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        units = list(parse_units(whole, path))
        for unit, step in zip(units, [*steps, *[None] * len(units)], strict=False):
            if step is None or (unit.unit, unit.stage, unit.indices) != (
                step.unit,
                step.stage,
                step.indices,
            ):
                raise InputNotFoundError(
                    f"{path} has unit {unit.unit} ({unit.stage}) where the plan has another one. "
                    "It was changed by something else; start again in another folder.",
                    path=str(path),
                )
        return units

    def append(self, unit: Unit) -> None:
        """Write one more unit; it is on disk when this returns.

        Raises:
            WriteFailedError: It cannot be written; the file ends with the unit before.
        """
        path = self.path / ROWS
        new = not path.exists()
        with _writing(path), path.open("ab") as file:
            size = file.seek(0, os.SEEK_END)
            try:
                file.write(unit.to_line())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(path, size)
                raise
        if new:
            sync_folder(self.path)

    def patch_file(self, unit: int) -> Path:
        """Return where the patch of a unit is kept."""
        return self.path / PATCHES / f"{unit:06}.editkit.safetensors"

    def _write(self, name: str, value: Json) -> None:
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        write_file(self.path / name, [text.encode()], force=True)


def refuse_another(path: Path, meta: Mapping[str, Any], plan: Plan) -> None:  # Any: JSON values
    """Refuse a folder whose run has another plan.

    Raises:
        OutputExistsError: It has.
    """
    if meta.get("plan_digest") == plan.digest:
        return
    theirs = meta.get("plan", {})
    differing = "; ".join(plan.differences(theirs)) or "another version of the plan"
    raise OutputExistsError(
        f"{path} holds another run: {theirs.get('method')} on {theirs.get('model')}, "
        f"{theirs.get('dataset')}, {theirs.get('scenario')}. It differs in: {differing}. Choose "
        "another --out; a run goes on only with the plan it was begun with.",
        path=str(path),
        differences=differing,
    )


def refuse_other_input(
    path: Path,
    what: str,
    there: Mapping[str, Any],  # Any: JSON values
    here: Mapping[str, Any],  # Any: JSON values
    key: str,
) -> None:
    """Refuse to go on when a data set or model of the same name is another one now.

    Raises:
        OutputExistsError: Their digests differ.
    """
    if there.get(key) == here.get(key):
        return
    raise OutputExistsError(
        f"{path} was begun with another {what} of the same name: its {key} is "
        f"{str(there.get(key))[:16]}, this one's is {str(here.get(key))[:16]}. Choose another "
        "--out.",
        path=str(path),
        expected=there.get(key),
        found=here.get(key),
    )


def read_meta(folder: Path) -> Json:
    """Return what a run's ``run.json`` says.

    Raises:
        InputNotFoundError: The folder holds no run, or one of another format.
    """
    path = folder / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputNotFoundError(
            f"{folder} holds no run: {META} cannot be read ({error}). Name a folder that "
            "`editkit bench` wrote.",
            path=str(path),
        ) from error
    spec = meta.get("spec") if isinstance(meta, dict) else None
    if spec != SPEC:
        raise InputNotFoundError(
            f"{path} says it is {spec!r}; this version reads {SPEC}. Update editkit, or make the "
            "run again.",
            path=str(path),
        )
    assert isinstance(meta, dict)
    return meta


def split_torn(data: bytes) -> tuple[bytes, bytes]:
    """Part the whole lines from what a crash left of the last one."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def parse_units(whole: bytes, path: Path) -> Iterator[Unit]:
    """Yield the units of whole lines.

    Raises:
        InputNotFoundError: A line is no unit.
    """
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            yield Unit.from_line(line)
        except (ValueError, TypeError, KeyError) as error:
            raise InputNotFoundError(
                f"{path}, line {number}, is no unit of a run: {type(error).__name__}: {error}. "
                "The file was damaged; make the run again in another folder.",
                path=str(path),
                line=number,
            ) from error


def _entries(path: Path) -> list[Path]:
    if not path.is_dir():
        raise OutputExistsError(f"{path} is a file. Name a folder with --out.", path=str(path))
    return list(path.iterdir())


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteFailedError(
            f"Cannot write {path}: {error.strerror or error}. What was finished is kept; free "
            "space or choose another --out, and start again to go on.",
            path=str(path),
            errno=error.errno,
        ) from error
