"""An edit that is computed on top of a stack and pushed on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from editkit_core.cli.commands.stack.changing import Changed, How
from editkit_core.cli.commands.stack.pushing import pushed
from editkit_core.errors import StackError

if TYPE_CHECKING:
    from editkit_core.patch.format import Patch
    from editkit_core.stack.store import StackStore
    from editkit_core.types import EditRequest

SUFFIX = ".editkit.safetensors"
_NEW = "the new edit"


def refuse_contradiction(
    store: StackStore, requests: Sequence[EditRequest], *, force: bool = False
) -> None:
    """Refuse requests that contradict or repeat what the stack says, before they are computed.

    Raises:
        StackConflictError: They do, and it is not forced.
    """
    from editkit_core.patch.format import Patch
    from editkit_core.patch.header import BaseFingerprint, MethodRef, PatchHeader
    from editkit_core.stack.conflicts import check_conflicts
    from editkit_core.stack.state import EntryState

    header = PatchHeader(
        id=_NEW, content_digest="", checksum="", created="", entries=(), tensors={},
        method=MethodRef(name="none", dist="editkit-core", version="0"),
        base=BaseFingerprint(model="any", tensors={}), edits=tuple(requests),
    )  # fmt: skip
    pairs = [(entry, store.patch(entry)) for entry in store.state.effective]
    planned = (EntryState(id=_NEW, content_digest=""), Patch(header=header, entries=()))
    check_conflicts([*pairs, planned], {_NEW}, force=force)


def push_edit(
    store: StackStore, patch: Patch, name: str, *, force: bool, kept: Path | None
) -> Changed:
    """Push a computed edit; when that is refused, its file is kept.

    Args:
        store: The stack.
        patch: The edit.
        name: What to call it in the stack.
        force: Accept conflicts.
        kept: Where it is saved already, if anywhere.

    Raises:
        StackError: It is refused; the message says where the file is.
    """
    try:
        return pushed(store, [(name, patch)], How(force=force))[0]
    except StackError as error:
        kept = kept or Path(patch.id + SUFFIX)
        if not kept.exists():
            patch.save(kept)
        error.message += f" The edit itself is kept in {kept}."
        raise
