"""Compute edits again on the stack as it is now.

A patch holds its requests, its method's name, parameters and seed. With the base and the patches
below it on the model, running the method again gives the patch that belongs there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from editkit_core.errors import StaleEntryError
from editkit_core.patch.fold_record import FOLD
from editkit_core.patch.header_codec import seal
from editkit_core.stack import operations
from editkit_core.stack.patch_stack import PatchStack
from editkit_core.stack.state import EntryState, StackState, entry_of
from editkit_core.types import EditContext, Progress, SilentProgress

if TYPE_CHECKING:
    from editkit_core.api import Editor
    from editkit_core.patch.artifact import EditorArtifact
    from editkit_core.patch.format import Patch


@attrs.frozen(kw_only=True, eq=False)
class Rebased:
    """What came of a rebase.

    Attributes:
        state: The stack with the new patches in their places.
        patches: The new patches by id.
        replaced: New id by old id, in the order they were computed.
    """

    state: StackState
    patches: Mapping[str, Patch]
    replaced: Mapping[str, str]


def rebase(
    editor: Editor,
    state: StackState,
    patches: Mapping[str, Patch],
    *,
    references: Sequence[str] | None = None,
    statistics_dir: Path | None = None,
    trained: EditorArtifact | None = None,
    progress: Progress | None = None,
) -> Rebased:
    """Compute entries again, bottom first, each on what counts below it.

    What an entry replaces does not count there: it holds the edits of that one too, and all of them
    are computed again.

    Args:
        editor: The base, without patches. It is left so.
        state: The stack.
        patches: Its patches by id.
        references: What to compute again; None means every effective entry that is stale, or
            becomes so because one below it was computed again.
        statistics_dir: Folder of key statistics; the user's cache folder by default.
        trained: The trained editor of the entries whose method needs one; others are computed
            without it.
        progress: Where long work reports to.

    Raises:
        UnknownEntryError: There is no such entry.
        StaleEntryError: A patch has no requests to compute it from.
        EditkitError: The method is not installed, or cannot compute the edit.
    """
    named = None if references is None else {state.entry(r).id for r in references}
    context = EditContext(
        statistics_dir=statistics_dir, editor=trained, progress=progress or SilentProgress()
    )
    held, made, replaced = dict(patches), dict[str, "Patch"](), dict[str, str]()
    for name in [entry.id for entry in state.active]:
        place = state.index(name)
        entry = state.entries[place]
        stale = state.is_stale(entry) and entry.id not in state.shadowed
        if not (entry.id in named if named is not None else stale):
            continue
        patch = _computed_again(editor, state, place, held, context)
        held[patch.header.id] = made[patch.header.id] = patch
        replaced[entry.id] = patch.header.id
        again = entry_of(patch, enabled=entry.enabled, scale=entry.scale, mode=entry.mode)
        state = operations.replace(state, entry.id, again)
    return Rebased(state=state, patches=made, replaced=replaced)


def _computed_again(
    editor: Editor,
    state: StackState,
    place: int,
    patches: Mapping[str, Patch],
    context: EditContext,
) -> Patch:
    entry = state.entries[place]
    old = patches[entry.id]
    _check_computable(entry, old)
    ground = state.ground_of(entry)
    below = StackState(entries=ground, position=len(ground))
    trained = context.editor
    context = attrs.evolve(
        context,
        seed=old.header.seed,
        locate=old.header.environment.get("locate", "preset"),
        editor=trained if trained and trained.method.name == old.header.method.name else None,
    )
    with PatchStack.restore(editor.model, below, patches):
        new = editor.run(
            old.header.edits,
            method=old.header.method.name,
            params=dict(old.header.params),
            context=context,
        ).patch
    replaces = dict.fromkeys((old.header.id, *entry.replaces, *new.header.replaces))
    header = attrs.evolve(
        new.header, name=old.header.name, replaces=tuple(replaces), licence=old.header.licence
    )
    return attrs.evolve(new, header=seal(header))


def _check_computable(entry: EntryState, patch: Patch) -> None:
    if patch.header.method.name == FOLD:
        raise StaleEntryError(
            f"{entry.label} is a fold of several patches, which are computed again one by one. "
            "Nothing was changed. Split it first (editkit stack split), then rebase.",
            patch=entry.id,
        )
    if not patch.header.edits:
        raise StaleEntryError(
            f"{entry.label} holds no requests, so it cannot be computed again. Nothing was "
            "changed. Remove it, or keep it as it is with --force.",
            patch=entry.id,
        )
