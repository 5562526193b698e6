"""``editkit stack enable, disable, scale, mode, move, remove``: change patches in the stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from editkit_core.cli.commands.stack.changing import How, change
from editkit_core.cli.commands.stack.options import (
    dry_run_option,
    force_option,
    open_store,
    patch_reference,
    rebase_option,
    stack_option,
)
from editkit_core.cli.commands.stack.telling import tell
from editkit_core.cli.output import json_option
from editkit_core.errors import StackError, did_you_mean

if TYPE_CHECKING:
    from editkit_core.stack.state import Mode, StackState

F = TypeVar("F", bound=Callable[..., Any])  # Any: click commands take any options
_OPTIONS = (stack_option, force_option, rebase_option, dry_run_option, json_option)
_PLACES = ("bottom", "top")
_NUMBERS = {"ignore_unknown_options": True}  # so that -1 is a number, not an option


def _options(command: F) -> F:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("enable")
@click.argument("reference", metavar="PATCH", type=patch_reference)
@_options
def enable(reference: str, folder: Path, **options: bool) -> None:
    """Let a disabled patch count again."""
    from editkit_core.stack import operations

    _change(folder, [reference], operations.enable, options, ("enable", "Enabled"))


@click.command("disable", short_help="Leave a patch out, wherever it is.")
@click.argument("reference", metavar="PATCH", type=patch_reference)
@_options
def disable(reference: str, folder: Path, **options: bool) -> None:
    """Leave a patch out. It keeps its place, wherever in the stack it is."""
    from editkit_core.stack import operations

    _change(folder, [reference], operations.disable, options, ("disable", "Disabled"))


@click.command("scale", short_help="Set the factor on a patch.", context_settings=_NUMBERS)
@click.argument("reference", metavar="PATCH", type=patch_reference)
@click.argument("factor", type=float)
@_options
def scale(reference: str, factor: float, folder: Path, **options: bool) -> None:
    """Set the factor on a patch's change: 1 is the patch as it was made."""
    from editkit_core.stack import operations

    def operation(state: StackState, name: str) -> StackState:
        return operations.scale(state, name, factor)

    _change(folder, [reference], operation, options, ("scale", "Scaled"), f" to {factor:g}")


@click.command("mode", short_help="Merge a patch, or keep it as a side path.")
@click.argument("reference", metavar="PATCH", type=patch_reference)
@click.argument("mode", type=click.Choice(["merge", "overlay"]))
@_options
def set_mode(reference: str, mode: Mode, folder: Path, **options: bool) -> None:
    """Say whether a patch is written into the weights or kept as a side path."""
    from editkit_core.stack import operations

    def operation(state: StackState, name: str) -> StackState:
        return operations.set_mode(state, name, mode)

    _change(folder, [reference], operation, options, ("set", "Set"), f" to {mode}")


@click.command("move", short_help="Put a patch to another place.")
@click.argument("reference", metavar="PATCH", type=patch_reference)
@click.argument("place", metavar="PLACE")
@_options
def move(reference: str, place: str, folder: Path, **options: bool) -> None:
    """Put a patch to another PLACE: a number from 1 at the bottom, or `bottom` or `top`.

    How many are applied stays as it is; `bottom` and `top` are those of the applied patches for an
    applied one, and of those that wait for one that waits.
    """
    from editkit_core.stack import operations

    def operation(state: StackState, name: str) -> StackState:
        return operations.move(state, name, _place(state, name, place))

    where = f" to the {place}" if place in _PLACES else f" to place {place}"
    _change(folder, [reference], operation, options, ("move", "Moved"), where)


@click.command("remove", short_help="Take patches out, wherever they are.")
@click.argument("references", metavar="PATCH...", nargs=-1, required=True, type=patch_reference)
@_options
def remove(references: tuple[str, ...], folder: Path, **options: bool) -> None:
    """Take patches out of the stack, wherever they are. `gc` deletes their files later."""
    from editkit_core.stack import operations

    _change(folder, references, operations.remove, options, ("remove", "Removed"))


def _change(
    folder: Path,
    references: Sequence[str],
    operation: Callable[[StackState, str], StackState],
    options: Mapping[str, Any],  # Any: the fields of How
    words: tuple[str, str],
    more: str = "",
) -> None:
    """Make one change for each patch, all in one step, and say so in the words given."""
    how = How(**options)
    store = open_store(folder)
    entries = [store.state.entry(reference) for reference in dict.fromkeys(references)]

    def whole(state: StackState) -> StackState:
        for entry in entries:
            state = operation(state, entry.id)
        return state

    what = ", ".join(entry.label for entry in entries) + more
    changed = change(store, whole, how, action=f"{words[0]} {what}")
    tell(changed, how, *words, what)


def _place(state: StackState, name: str, word: str) -> int:
    """Return a place counted from 0; bottom and top are among the applied, or those that wait.

    Raises:
        StackError: The word is neither a number nor bottom or top.
    """
    if word in _PLACES:
        applied = state.index(name) < state.position
        first, after = (0, state.position) if applied else (state.position, len(state.entries))
        return first if word == "bottom" else after - 1
    try:
        return int(word) - 1
    except ValueError:
        raise StackError(
            f"There is no place {word!r}. Give a number from 1 to {len(state.entries)}, or bottom "
            f"or top.{did_you_mean(word, _PLACES)}",
            place=word,
        ) from None
