"""Options that the stack's commands share, and the stack they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from editkit_core.stack.store import StackStore

DEFAULT_FOLDER = ".editkit"
_MOST_DIGITS = 4


def patch_reference(word: str) -> str:
    """Write a bare number as the stack understands it: ``2`` is ``#2``.

    A shell takes what begins with ``#`` for a comment.
    """
    return f"#{word}" if word.isdecimal() and len(word) <= _MOST_DIGITS else word


stack_option = click.option(
    "--stack",
    "-s",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(DEFAULT_FOLDER),
    envvar="EDITKIT_STACK",
    show_default=True,
    show_envvar=True,
    help="The stack's folder.",
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Check and say what would be done; write nothing."
)
force_option = click.option(
    "--force", is_flag=True, help="Do it though patches become stale or are in conflict."
)
rebase_option = click.option(
    "--rebase", is_flag=True, help="Compute patches that become stale again, from their requests."
)


def open_store(folder: Path) -> StackStore:
    """Open the stack in a folder, with the entry kinds that are installed.

    Raises:
        InputNotFoundError: There is no stack.
        StackDamagedError: It cannot be read.
    """
    from editkit_core.cli.options import known_kinds
    from editkit_core.stack.store import StackStore

    return StackStore.open(folder, kinds=known_kinds())
