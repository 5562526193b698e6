"""Patches that are computed again, and how new ones come into the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from editkit_core.cli.commands.stack.basing import load_base
from editkit_core.cli.output import progress_bar

if TYPE_CHECKING:
    from editkit_core.patch.format import Patch
    from editkit_core.stack.rebase import Rebased
    from editkit_core.stack.state import EntryState, StackState
    from editkit_core.stack.store import StackStore


def keep(store: StackStore, patch: Patch) -> EntryState:
    """Return a patch's entry. Its file is written by the change that brings the entry in.

    So a change that is refused leaves no file behind.
    """
    return store.add(patch, dry_run=True)


def patches_of(store: StackStore, entries: Iterable[EntryState]) -> dict[str, Patch]:
    """Return the patches of entries by id."""
    return {entry.id: store.patch(entry) for entry in entries}


def computed_again(
    store: StackStore,
    state: StackState,
    ids: Sequence[str],
    *,
    trained: Path | None = None,
    silent: bool,
) -> tuple[StackState, Mapping[str, str]]:
    """Compute patches again on what lies below them, and then those that stand on them.

    Their files are kept in the store. The former ids are the keys of the second value.
    """
    from editkit_core.patch.artifact import EditorArtifact
    from editkit_core.stack.rebase import rebase

    artifact = None if trained is None else EditorArtifact.load(trained)
    editor, replaced = load_base(store), dict[str, str]()
    with progress_bar(off=silent) as bar:
        while ids:
            patches = patches_of(store, state.active)
            done = rebase(editor, state, patches, references=ids, trained=artifact, progress=bar)
            state = _with_files(store, state, done)
            replaced |= done.replaced
            made = set(replaced.values())
            ids = [entry.id for entry in state.stale if entry.id not in made]
    return state, replaced


def _with_files(store: StackStore, before: StackState, done: Rebased) -> StackState:
    """Give new entries the digests of their files, and the names that the old ones had."""
    files = {name: keep(store, patch).file_sha256 for name, patch in done.patches.items()}
    names = {new: before.entry(old).name for old, new in done.replaced.items()}
    entries = [
        attrs.evolve(entry, file_sha256=files[entry.id], name=names[entry.id])
        if entry.id in files
        else entry
        for entry in done.state.entries
    ]
    return attrs.evolve(done.state, entries=entries)
