"""The model a stack is for, with or without its patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import attrs

from editkit_core.cli.options import load_editor

if TYPE_CHECKING:
    from editkit_core.api import Editor
    from editkit_core.patch.format import Patch
    from editkit_core.stack.state import EntryState, Mode
    from editkit_core.stack.store import StackStore


def load_base(store: StackStore, **options: Any) -> Editor:  # Any: the model options
    """Load the model that a stack is for, without patches.

    Args:
        store: The stack.
        **options: The options of :func:`load_editor`; ``model`` and ``revision`` say where the
            base is to be found instead of where the stack says.
    """
    base = store.document.base
    given = {name: value for name, value in options.items() if value is not None}
    if "model" not in given:
        given |= {"model": base.model, "revision": base.revision}
    return load_editor(**given)


def load_stacked(
    store: StackStore, *, mode: str = "auto", **options: Any
) -> Editor:  # Any: the model options
    """Load the model that a stack is for, with the patches that count on it.

    Args:
        store: The stack.
        mode: ``auto`` realises each patch as the stack says, but lays those over that this load of
            the model cannot hold in its weights; ``merge`` and ``overlay`` are for all.
        **options: See :func:`load_base`.

    Raises:
        BaseMismatchError: ``model`` names another base.
        ApplyError: A patch cannot be merged, and ``mode`` says so.
        StackDamagedError: A patch file is missing or was changed.
    """
    from editkit_core.patch.fingerprint import check_base
    from editkit_core.stack.patch_stack import PatchStack

    patches = {entry.id: store.patch(entry) for entry in store.state.effective}
    editor = load_base(store, **options)
    if mode == "auto":  # a model that the patches were not made for cannot be asked for modes
        check_base(editor.model, *patches.values())
    entries = [
        attrs.evolve(entry, mode=_mode(editor, entry, patches[entry.id], mode))
        if entry.id in patches
        else entry
        for entry in store.state.entries
    ]
    PatchStack.restore(editor.model, attrs.evolve(store.state, entries=entries), patches)
    return editor


def _mode(editor: Editor, entry: EntryState, patch: Patch, mode: str) -> Mode:
    if mode != "auto":
        return cast("Mode", mode) if patch.weight_entries else "overlay"
    if entry.mode == "overlay":
        return "overlay"
    import logging

    from editkit_core.patch.modes import choose_mode

    choice = choose_mode(editor.model, patch, scale=entry.scale)
    if choice.why:
        logging.getLogger("editkit").info("%s: %s", entry.label, choice.why)
    return choice.mode
