"""Reading a stack's folder, and writing a version of it."""

from __future__ import annotations

from pathlib import Path

from editkit_core.atomic import write_together
from editkit_core.errors import InputNotFoundError, OutputExistsError, WriteFailedError
from editkit_core.stack.store.document import DOCUMENT, StackDocument, damaged, decode, encode
from editkit_core.stack.store.history import History
from editkit_core.stack.store.lock_file import LOCK_FILE, encode_lock
from editkit_core.stack.store.objects import Objects


def read_document(folder: Path) -> StackDocument:
    """Read what a stack's folder says.

    Raises:
        InputNotFoundError: It holds no stack.
        StackDamagedError: ``stack.json`` is damaged, or missing where the rest is there.
        StackError: It is of another version.
    """
    path = folder / DOCUMENT
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if History(folder).folder.is_dir() and Objects(folder).folder.is_dir():
            raise damaged(path, "it is missing") from None
        raise InputNotFoundError(
            f"{folder} holds no stack. Make one with `editkit stack init`, or give its folder.",
            path=str(folder),
        ) from None
    except OSError as error:
        raise InputNotFoundError(
            f"Cannot read {path}: {error.strerror or error}. Check the folder's permissions.",
            path=str(path),
        ) from error
    return decode(text, path)


def write_version(folder: Path, document: StackDocument) -> None:
    """Write a version: into the history, then as ``stack.json``, then as ``editkit.lock``.

    All three are complete on disk before the first takes its place. The version counts from the
    moment in which ``stack.json`` does.

    Raises:
        WriteFailedError: Writing failed; the former version stands.
    """
    version = History(folder).path(document.generation)
    try:
        version.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise WriteFailedError(
            f"Cannot make the folder {version.parent}: {error.strerror or error}. Check that the "
            "disk has space and the stack's folder may be written to.",
            path=str(version.parent),
            errno=error.errno,
        ) from error
    text = encode(document)
    write_together(
        {version: text, folder / DOCUMENT: text, folder / LOCK_FILE: encode_lock(document)}
    )


def check_free(folder: Path) -> None:
    """Check that a stack may be made in a folder.

    Raises:
        OutputExistsError: It holds something.
    """
    if (folder / DOCUMENT).exists():
        raise OutputExistsError(
            f"{folder} holds a stack already. Use it, or choose another folder.", path=str(folder)
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(
            f"{folder} exists and is not an empty folder. Choose another name for the stack.",
            path=str(folder),
        )
