"""Files and folders that appear whole or not at all.

The content is built beside the target under a temporary name, flushed to disk, then renamed. A full
disk, an exception or Ctrl-C leaves the target as it was and no temporary file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from editkit_core.errors import EditkitError, OutputExistsError, WriteFailedError


def write_file(path: Path, pieces: Iterable[bytes | memoryview], *, force: bool = False) -> None:
    """Write ``pieces`` one after another as the file ``path``.

    Raises:
        OutputExistsError: The file exists and ``force`` is false.
        WriteFailedError: Writing failed; nothing was left.
    """
    _refuse_existing(path, force)
    temporary = _beside(path)
    with _clean_failure(path, temporary):
        _write_temporary(temporary, pieces)
        _refuse_existing(path, force)
        temporary.replace(path)
        sync_folder(path.parent)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write several files, replacing old ones: all are on disk before the first takes its place.

    So a full disk changes none of them. They take their places in the order given, each flushed
    before the next; a crash between two leaves the earlier ones new and the later ones old.

    Args:
        files: Content by path.

    Raises:
        WriteFailedError: Writing failed; every file is as it was.
    """
    temporaries = {path: _beside(path) for path in files}
    with contextlib.ExitStack() as cleaning:
        for path, temporary in temporaries.items():
            cleaning.enter_context(_clean_failure(path, temporary))
            _write_temporary(temporary, [files[path]])
        for path, temporary in temporaries.items():
            temporary.replace(path)
            sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes ``path`` when the block ends well.

    Args:
        path: The folder to make. An empty one may exist.
        replace: Whether a non-empty one may be replaced; it is removed only after the new one is
            complete.

    Yields:
        The folder to write into.

    Raises:
        OutputExistsError: The folder is not empty and ``replace`` is false.
        WriteFailedError: Writing failed; nothing was left.
    """
    path = path.resolve()
    temporary, old = _beside(path), _beside(path)
    with _clean_failure(path, temporary):
        temporary.mkdir()
        yield temporary
        for item in temporary.rglob("*"):
            if item.is_file():
                _sync_file(item)
        for folder in (temporary, *(item for item in temporary.rglob("*") if item.is_dir())):
            sync_folder(folder)
        _swap(temporary, path, old, replace)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk where the system can."""
    with contextlib.suppress(OSError):  # not every file system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_temporary(temporary: Path, pieces: Iterable[bytes | memoryview]) -> None:
    with temporary.open("xb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def _swap(temporary: Path, path: Path, old: Path, replace: bool) -> None:
    if path.exists() and (path.is_file() or any(path.iterdir())) and not replace:
        raise OutputExistsError(
            f"{path} exists. Choose another name or pass --force.", path=str(path)
        )
    if path.exists():
        path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    sync_folder(path.parent)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _refuse_existing(path: Path, force: bool) -> None:
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder. Give the name of a file.", path=str(path))
    if path.exists() and not force:
        raise OutputExistsError(
            f"{path} exists already. Choose another name or pass --force to replace it.",
            path=str(path),
        )


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name[:100]}.{secrets.token_hex(6)}.tmp"


@contextlib.contextmanager
def _clean_failure(path: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, EditkitError):
            raise WriteFailedError(
                f"Cannot write {path}: {error.strerror or error}. Nothing was left behind. Check "
                "that the folder exists, may be written to and has space.",
                path=str(path),
                errno=error.errno,
            ) from error
        raise
