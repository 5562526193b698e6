"""What the merged patches of a stack make of the base's tensors.

Only tensors whose patches changed are computed; the others' results are taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from editkit_core.stack.state import EntryState, StackState
from editkit_core.stack.store.document import TensorResult

if TYPE_CHECKING:
    from editkit_core.patch.checkpoint import CheckpointSource
    from editkit_core.patch.format import Patch

Read = Callable[[EntryState], "Patch"]


def merged_entries(state: StackState) -> dict[str, EntryState]:
    """Return the entries that are merged into the weights, by id."""
    return {entry.id: entry for entry in state.effective if entry.mode == "merge"}


def next_results(
    before: StackState,
    results: Mapping[str, TensorResult],
    after: StackState,
    read: Read,
    find_source: Callable[[], CheckpointSource],
) -> dict[str, TensorResult]:
    """Return the results of a state, given those of the state before it.

    Args:
        before: The former state.
        results: Its results.
        after: The state.
        read: Gives a patch.
        find_source: Finds the base; called when it is needed.

    Raises:
        BaseMismatchError: A patch that is new to the stack does not fit the base.
        ApplyError: A weight would overflow, or an entry cannot be realised as is said.
    """
    _check_realisable(before, after, read)
    old, new = merged_entries(before), merged_entries(after)
    changed = {key for key in old.keys() | new.keys() if not _same(old.get(key), new.get(key))}
    arrived = [read(new[key]) for key in sorted(changed & new.keys())]
    known = {entry.id for entry in before.entries}
    waiting = [e for e in after.entries if e.id not in known and e.id not in new]
    if waiting:
        check_fit(find_source(), [read(entry) for entry in waiting])
    touched = {name for name, result in results.items() if changed & set(result.patches)}
    if arrived:
        touched |= set(stored_names(find_source(), arrived))
    kept = {name: result for name, result in results.items() if name not in touched}
    wanted = {
        key for name in touched & results.keys() for key in results[name].patches
    } & new.keys()
    if not wanted and not arrived:
        return kept
    have = {patch.header.id: patch for patch in arrived}
    patches = [have.get(key) or read(new[key]) for key in sorted(wanted | have.keys())]
    return kept | compute_results(find_source(), patches, new, touched)


def compute_results(
    source: CheckpointSource,
    patches: Iterable[Patch],
    entries: Mapping[str, EntryState],
    names: Collection[str] | None = None,
) -> dict[str, TensorResult]:
    """Compute results from the base.

    Args:
        source: The base.
        patches: The patches to merge; all those on the tensors asked for.
        entries: Their entries, by id.
        names: Stored names of the tensors asked for; None for all.

    Raises:
        BaseMismatchError: A patch does not fit the base.
        ApplyError: A weight would overflow.
    """
    from editkit_core.patch import bits
    from editkit_core.patch.checkpoint_change import changes

    patches = list(patches)
    members = stored_names(source, patches)
    changed = changes(source, [(p, float(entries[p.header.id].scale)) for p in patches])
    return {
        name: TensorResult(
            pristine_sha256=bits.sha256(change.pristine),
            sha256=bits.sha256(change.patched),
            patches=tuple(sorted(members[name])),
        )
        for name, change in changed.items()
        if names is None or name in names
    }


def stored_names(source: CheckpointSource, patches: Iterable[Patch]) -> dict[str, set[str]]:
    """Return the stored names of the tensors that patches change, with the patches' ids.

    Raises:
        InputNotFoundError: The base lacks a weight.
    """
    found: dict[str, set[str]] = {}
    for patch in patches:
        for entry in patch.weight_entries:
            name = source.locate(entry.site.parameter)[1].name
            found.setdefault(name, set()).add(patch.header.id)
    return found


def check_fit(source: CheckpointSource, patches: Iterable[Patch]) -> None:
    """Check that patches were made for the base, without merging them.

    Raises:
        BaseMismatchError: One was not.
    """
    from editkit_core.patch.checkpoint_change import changes

    changes(source, [(patch, 0.0) for patch in patches])  # a factor of 0 leaves only the checks


def _check_realisable(before: StackState, after: StackState, read: Read) -> None:
    """Check mode and scale of what is new or has other ones."""
    from editkit_core.patch.module_level import check_realisable

    known = {(entry.id, entry.mode, entry.scale) for entry in before.entries}
    for entry in after.entries:
        if (entry.id, entry.mode, entry.scale) not in known:
            check_realisable(read(entry), entry.mode, entry.scale)


def _same(old: EntryState | None, new: EntryState | None) -> bool:
    if old is None or new is None:
        return False
    return (old.content_digest, old.scale) == (new.content_digest, new.scale)
