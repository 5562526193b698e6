"""The folder of a training run: whose it is, who may write into it, and what to go on from."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from editkit_core.atomic import write_file
from editkit_core.errors import CheckpointError, OutputExistsError, WriteFailedError
from editkit_core.patch.artifact_io import FILE_NAME as EDITOR
from editkit_core.training import checkpoint as checkpoints
from editkit_core.training.checkpoint import Checkpoint
from editkit_core.training.logs import BOARD, TRAINING, VALIDATION
from editkit_core.training.options import TrainingOptions
from editkit_core.training.processes import Processes

__all__ = ["CHECKPOINT", "EDITOR", "held", "resumed"]

META = "run.json"
CHECKPOINT = checkpoints.FILE_NAME
_LOCK = ".lock"
_OWN = frozenset({META, _LOCK, TRAINING, VALIDATION, BOARD, EDITOR, CHECKPOINT})
_SPEC = "editkit.training/1"


@contextlib.contextmanager
def held(folder: Path | None, processes: Processes) -> Iterator[Path | None]:
    """Make the folder and keep other runs out of it meanwhile.

    Raises:
        OutputExistsError: It holds something else, or another process trains in it.
        WriteFailedError: It cannot be made.
    """
    if folder is None:
        yield None
        return
    _refuse_others(folder)
    processes.wait()
    if not processes.is_main:
        yield folder
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:  # an OSError too
        raise OutputExistsError(
            f"Another process is training in {folder} now. Wait for it, or choose another --out.",
            path=str(folder),
        ) from error
    except OSError as error:
        raise WriteFailedError(
            f"Cannot write {folder}: {error.strerror or error}. Choose another --out.",
            path=str(folder),
            errno=error.errno,
        ) from error
    try:
        yield folder
    finally:
        lock.release()


def _refuse_others(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file. Name a folder with --out.", path=str(folder))
    others = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    others = [name for name in others if name not in _OWN]
    if others and not (folder / META).exists():
        raise OutputExistsError(
            f"{folder} holds {others[0]} and no {META}, so it is not the folder of a training "
            "run. Choose another --out.",
            path=str(folder),
        )


def resumed(
    folder: Path | None,
    run: Mapping[str, Any],  # Any: JSON values
    options: TrainingOptions,
    processes: Processes,
) -> Checkpoint | None:
    """Return the checkpoint to go on from; where there is none, write down what the run is.

    Raises:
        CheckpointError: It is damaged, or of another run.
    """
    if folder is None:
        return None
    if options.fresh and processes.is_main:
        _clear(folder)
    processes.wait()
    path = folder / CHECKPOINT
    if processes.said_by_main(path.exists(), processes.device) != path.exists():
        raise CheckpointError(
            f"Process {processes.rank} does not see what the main process sees in {folder}. Put "
            "--out on storage that all machines share.",
            path=str(path),
        )
    if path.exists():
        found = checkpoints.read(path)
        _refuse_another(path, found.run, run)
        return found
    if processes.is_main:
        _clear(folder)
        text = json.dumps({"spec": _SPEC, **run}, indent=1, ensure_ascii=False) + "\n"
        write_file(folder / META, [text.encode()], force=True)
    processes.wait()
    return None


def _clear(folder: Path) -> None:
    """Take out what an earlier run left."""
    for name in _OWN - {_LOCK}:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse_another(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    # Any: JSON values
    differing = list(_differences(there, here))
    if differing:
        raise CheckpointError(
            f"{path} is of another training run. It differs in {'; '.join(differing[:5])}. Choose "
            "another --out, or start again with --fresh; a run goes on only as it was begun.",
            path=str(path),
            differences=tuple(differing),
        )


def _differences(
    there: Mapping[str, Any],  # Any: JSON values
    here: Mapping[str, Any],  # Any: as above
    prefix: str = "",
) -> Iterator[str]:
    for name in sorted({*there, *here}):
        one, other = there.get(name), here.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}: {json.dumps(one)[:60]} there, {json.dumps(other)[:60]} here"
