"""Which checkpoint folders may be read from and written to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from editkit_core.errors import (
    ApplyError,
    InputNotFoundError,
    OutputExistsError,
    WriteFailedError,
)
from editkit_core.patch.checkpoint_record import RECORD

_LEFT_OUT = frozenset({".git", ".cache"})


def check_source(folder: Path) -> None:
    """Check that a folder holds an unpatched model.

    Raises:
        InputNotFoundError: It holds no model.
        ApplyError: It has a patch applied already.
    """
    if not (folder / "config.json").is_file():
        raise InputNotFoundError(
            f"{folder} has no config.json, so it is no model folder. Give a folder saved with "
            "save_pretrained.",
            path=str(folder),
        )
    if (folder / RECORD).exists():
        raise ApplyError(
            f"{folder} has a patch applied already ({RECORD} says which). Revert it with `editkit "
            "patch revert`, or apply to the original checkpoint.",
            path=str(folder),
        )


def check_out(source: Path, out: Path, force: bool) -> None:
    """Check that a folder may be written.

    Raises:
        OutputExistsError: It exists, or it and the source lie in one another.
        WriteFailedError: The folder around it does not exist.
    """
    here, there = source.resolve(), out.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise OutputExistsError(
            f"The output {out} is the source {source}, or one lies in the other; the source "
            "is never changed. Choose a folder beside it.",
            path=str(out),
        )
    if not there.parent.is_dir():
        raise WriteFailedError(
            f"The folder {there.parent} does not exist. Make it first.", path=str(out)
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise OutputExistsError(
            f"{out} exists already. Choose another name or pass --force to replace it.",
            path=str(out),
        )
    if not ((out / RECORD).is_file() or (out / "config.json").is_file()):
        raise OutputExistsError(
            f"{out} holds something else than a model, so even --force does not replace it. Choose "
            "another name, or remove it yourself.",
            path=str(out),
        )


def files_of(folder: Path) -> Iterator[Path]:
    """Yield a folder's files relative to it; version control and download caches are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        for name in names:
            if (Path(root) / name).is_file():
                yield (Path(root) / name).relative_to(folder)
