"""One writer at a time: a lock on the stack's folder that the system frees when its holder dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from editkit_core.errors import StackLockedError, WriteFailedError

GUARD = ".lock"
_POLL_S = 0.02


@contextmanager
def writing(folder: Path, timeout_s: float) -> Iterator[None]:
    """Hold the right to write to a stack's folder.

    Args:
        folder: The stack's folder.
        timeout_s: How long to wait for another writer, in seconds.

    Raises:
        StackLockedError: Another writer holds it for longer.
        WriteFailedError: The folder may not be written to.
    """
    guard = filelock.FileLock(folder / GUARD)
    try:
        guard.acquire(timeout=timeout_s, poll_interval=_POLL_S)
    except filelock.Timeout:
        raise StackLockedError(
            f"Another process has been writing to the stack {folder} for more than {timeout_s:g} "
            "s. Nothing was changed. Wait for it to end and run the command again; the lock is "
            "freed when that process ends, however it ends.",
            path=str(folder),
            timeout_s=timeout_s,
        ) from None
    except OSError as error:
        raise WriteFailedError(
            f"Cannot lock the stack {folder}: {error.strerror or error}. Check that the folder may "
            "be written to.",
            path=str(folder),
            errno=error.errno,
        ) from error
    try:
        yield
    finally:
        guard.release()
