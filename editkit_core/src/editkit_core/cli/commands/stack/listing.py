"""A stack as a person reads it, and as a program does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from editkit_core.cli.output import print_table, printable
from editkit_core.errors import EditkitError

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
        "top": entry == state.top,
        "stale": entry in state.stale,
        "scale": entry.scale,
        "mode": entry.mode,
        "computed_on": entry.computed_on,
        "depends_on": list(entry.depends_on),
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
    said = f"{state.position} of {len(state.entries)} applied"
    if disabled:
        said += f", {disabled} of them disabled"
    top = f", top {printable(state.top.label)}" if state.top else ""
    return f"{said}{top}."


def warning(state: StackState) -> str:
    """Name the stale patches and what to do about them; empty when there are none."""
    names = ", ".join(printable(entry.label) for entry in state.stale)
    if not names:
        return ""
    return f"Stale: {names}. Compute anew what stands on other patches: editkit stack rebase."


def _edits(header: PatchHeader) -> str:
    """Return what a patch says, in one line: its first request, and how many more there are."""
    if not header.edits:
        return "no requests"
    first, more = header.edits[0], len(header.edits) - 1
    return f"{first.text} -> {first.target_new}" + (f" (+{more} more)" if more else "")


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
    if entry.scale != 1:
        words.append(f"scale {entry.scale:g}")
    if entry.mode != "merge":
        words.append(entry.mode)
    if entry in state.stale:
        words.append("stale")
    return ", ".join(words)
