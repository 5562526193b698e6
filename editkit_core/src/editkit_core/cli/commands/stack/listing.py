"""A stack as a person reads it, and as a program does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from editkit_core.cli.output import print_table, printable
from editkit_core.errors import EditkitError
from editkit_core.patch.fold_record import FOLD

if TYPE_CHECKING:
    from editkit_core.patch.header import PatchHeader
    from editkit_core.stack.state import EntryState, StackState
    from editkit_core.stack.store import StackDocument, StackStore

Json = dict[str, Any]  # Any: JSON values


def plain(document: StackDocument) -> Json:
    """Return what a stack says, as JSON values."""
    state = document.state
    return {
        "generation": document.generation,
        "action": document.action,
        "base": {
            "model": document.base.model,
            "revision": document.base.revision,
            "digest": document.base.digest,
        },
        "digest": state.digest(),
        "position": state.position,
        "entries": [plain_entry(state, entry) for entry in state.entries],
    }


def plain_entry(state: StackState, entry: EntryState) -> Json:
    """Return one patch of a stack, as JSON values."""
    return {
        "place": state.index(entry.id) + 1,
        "id": entry.id,
        "name": entry.name,
        "applied": entry in state.applied,
        "enabled": entry.enabled,
        "active": entry in state.active,
        "shadowed": entry.id in state.shadowed,
        "top": entry == state.top,
        "stale": entry in state.stale,
        "scale": entry.scale,
        "mode": entry.mode,
        "computed_on": entry.computed_on,
        "depends_on": list(entry.depends_on),
        "replaces": list(entry.replaces),
        "content_digest": entry.content_digest,
        "file_sha256": entry.file_sha256,
    }


def print_entries(store: StackStore, entries: Iterable[EntryState]) -> None:
    """Print patches as a table, bottom first."""
    state = store.state
    rows = [
        (
            f"#{state.index(entry.id) + 1}",
            entry.label,
            says(store, entry),
            _standing(state, entry),
        )
        for entry in entries
    ]
    print_table(None, ("", "patch", "what it says", "state"), rows)


def summary(state: StackState) -> str:
    """Say in one sentence how much of a stack is applied."""
    if not state.entries:
        return "The stack is empty."
    disabled = len(state.applied) - len(state.active)
    replaced = len(state.active) - len(state.effective)
    said = f"{state.position} of {len(state.entries)} applied"
    if disabled:
        said += f", {disabled} of them disabled"
    if replaced:
        said += f", {replaced} of them replaced by newer ones"
    top = f", top {printable(state.top.label)}" if state.top else ""
    return f"{said}{top}."


def warning(state: StackState) -> str:
    """Name the stale patches and what to do about them; empty when there are none."""
    names = ", ".join(printable(entry.label) for entry in state.stale)
    if not names:
        return ""
    return f"Stale: {names}. Compute anew what stands on other patches: editkit stack rebase."


def _edits(header: PatchHeader) -> str:
    """Return what a patch says, in one line: one request, and how many more there are.

    It is the first; of a patch that holds earlier ones the last, which is what it adds to them.
    """
    if not header.edits:
        return "no requests"
    adds = bool(header.replaces) and header.method.name != FOLD
    shown, more = header.edits[-1 if adds else 0], len(header.edits) - 1
    return f"{shown.text} -> {shown.target_new}" + (f" (+{more} more)" if more else "")


def says(store: StackStore, entry: EntryState) -> str:
    """Return what a patch of the stack says, or what is wrong with its file."""
    try:
        return _edits(store.patch(entry).header)
    except EditkitError:
        return "(its file is damaged or missing: editkit stack doctor)"


def _standing(state: StackState, entry: EntryState) -> str:
    words = ["applied" if entry in state.applied else "waiting"]
    if entry == state.top:
        words.append("top")
    if not entry.enabled:
        words.append("disabled")
    if entry in state.active and entry.id in state.shadowed:
        words.append("shadowed")
    if entry.scale != 1:
        words.append(f"scale {entry.scale:g}")
    if entry.mode != "merge":
        words.append(entry.mode)
    if entry in state.stale:
        words.append("stale")
    return ", ".join(words)
