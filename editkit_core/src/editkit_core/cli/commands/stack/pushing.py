"""Put patches on top of a stack on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from editkit_core.cli.commands.stack.changing import Changed, How, change
from editkit_core.cli.commands.stack.recomputing import keep
from editkit_core.cli.commands.stack.telling import tell
from editkit_core.errors import InputNotFoundError, UnknownEntryError

if TYPE_CHECKING:
    from editkit_core.patch.format import Patch
    from editkit_core.stack.state import Mode, StackState
    from editkit_core.stack.store import StackStore


def read_patch(store: StackStore, file: Path) -> Patch:
    """Read a patch file strictly, with the entry kinds that are installed.

    Raises:
        InputNotFoundError: There is no such file; the message helps when the stack has a patch of
            that name.
        PatchError: It is refused.
    """
    from editkit_core.cli.options import known_kinds
    from editkit_core.patch.format import Patch

    try:
        return Patch.load(file, kinds=known_kinds())
    except InputNotFoundError as error:
        try:
            entry = store.state.entry(str(file))
        except UnknownEntryError:
            raise error from None
        raise InputNotFoundError(
            f"There is no file {file}. The stack has the patch {entry.label} already: apply it "
            f"with `editkit stack goto {entry.id}`.",
            path=str(file),
        ) from error


def push_patches(
    store: StackStore,
    patches: Sequence[tuple[str, Patch]],
    how: How,
    *,
    enabled: bool = True,
    scale: float = 1.0,
    mode: Mode | None = None,
) -> None:
    """Put patches on top of a stack, all of them or none, and say so."""
    changed, labels = pushed(store, patches, how, enabled=enabled, scale=scale, mode=mode)
    tell(changed, how, "push", "Pushed", labels + ("" if enabled else ", disabled"))


def pushed(
    store: StackStore,
    patches: Sequence[tuple[str, Patch]],
    how: How,
    *,
    enabled: bool = True,
    scale: float = 1.0,
    mode: Mode | None = None,
) -> tuple[Changed, str]:
    """Put patches on top of a stack, all of them or none; say what they are called there.

    Args:
        store: The stack.
        patches: What to call each where it has no name of its own, and the patch.
        how: What is accepted.
        enabled: Whether they count at once.
        scale: Factor on their change.
        mode: How they are realised; None merges what changes weights.

    Raises:
        BaseMismatchError: One was made for another base.
        StackConflictError: One is there already, or in conflict with another.
        StaleEntryError: One was computed on patches that are not there.
    """
    from editkit_core.stack import operations
    from editkit_core.stack.store.results import check_fit

    check_fit(store.source(), [patch for _, patch in patches])  # patches compare on one base only
    entries = []
    for called, patch in patches:
        entry = keep(store, patch)
        entries.append(
            attrs.evolve(
                entry,
                name=_name(store.state, patch, called),
                enabled=enabled,
                scale=scale,
                mode=mode or entry.mode,
            )
        )

    def operation(state: StackState) -> StackState:
        for entry in entries:
            state = operations.push(state, entry)
        return state

    labels = ", ".join(entry.label for entry in entries)
    return change(store, operation, how, action=f"push {labels}"), labels


def name_of(file: Path) -> str:
    """Return what a patch is called by its file: ``japan`` for japan.editkit.safetensors."""
    return file.name.removesuffix(".safetensors").removesuffix(".editkit")


def _name(state: StackState, patch: Patch, called: str) -> str:
    """Return a name that is free in the stack, or none."""
    from editkit_core.stack.operations import BASE

    taken = {BASE, *(entry.name for entry in state.entries)}
    return patch.header.name or (called if called not in taken else "")
