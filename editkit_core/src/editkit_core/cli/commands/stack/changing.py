"""A change of a stack on disk: checked, and written as one step.

The rules are those of :mod:`editkit_core.stack`. Here they come together: conflicts are looked for
among what newly counts, stale patches are refused, accepted or computed again, and the whole change
is one step of the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from editkit_core.cli.commands.stack.recomputing import computed_again

if TYPE_CHECKING:
    from editkit_core.stack.conflicts import Conflict
    from editkit_core.stack.state import StackState
    from editkit_core.stack.store import StackDocument, StackStore

Operation = Callable[["StackState"], "StackState"]


@attrs.frozen(kw_only=True)
class How:
    """How a change is made, as the options say.

    Attributes:
        force: Accept stale patches and conflicts.
        rebase: Compute stale patches again.
        dry_run: Write nothing.
        as_json: Tell it to a program.
        trained: File of the trained editor that patches are computed again with.
    """

    force: bool = False
    rebase: bool = False
    dry_run: bool = False
    as_json: bool = False
    trained: Path | None = None


@attrs.frozen(kw_only=True, eq=False)
class Changed:
    """What a change did.

    Attributes:
        before: The stack before it.
        document: The stack after it, or as it would be.
        conflicts: What the patches that newly count do to others, where it was accepted.
        replaced: New ids of patches that were computed again, by their old ones.
        awaiting: Ids of patches that a dry run did not compute again, and the command would.
        dry_run: Whether nothing was written.
    """

    before: StackState
    document: StackDocument
    conflicts: tuple[Conflict, ...]
    replaced: Mapping[str, str] = attrs.field(factory=dict)
    awaiting: tuple[str, ...] = ()
    dry_run: bool

    @property
    def anything(self) -> bool:
        """Whether the stack differs from what it was, or would."""
        return self.before != self.document.state or bool(self.awaiting)


def change(
    store: StackStore,
    operation: Operation,
    how: How,
    *,
    action: str,
    rebased: Sequence[str] = (),
) -> Changed:
    """Make one change of a stack.

    Args:
        store: The stack.
        operation: From one state to the next.
        how: What is accepted.
        action: What the history calls it.
        rebased: Ids of patches to compute again in any case.

    Raises:
        StackConflictError: Something that newly counts is in conflict, and it is not forced; or
            another process changed the stack meanwhile.
        StaleEntryError: A patch would be stale, and it is neither forced nor computed again.
    """
    from editkit_core.stack.conflicts import check_change
    from editkit_core.stack.operations import check_stale

    before, conflicts = store.state, tuple["Conflict"]()
    replaced: Mapping[str, str] = {}
    awaiting: tuple[str, ...] = ()
    generation = None
    if how.rebase:
        after = operation(before)
        awaiting = tuple(dict.fromkeys([*rebased, *(entry.id for entry in after.stale)]))
        if awaiting and not how.dry_run:
            check_change(
                before, after, store.patch, force=how.force
            )  # before the work, not after it
            generation = store.generation
            after, replaced = computed_again(
                store, after, awaiting, trained=how.trained, silent=how.as_json
            )
            operation, awaiting = _to(after), ()

    def checked(found: StackState) -> StackState:
        nonlocal before, conflicts
        before, after = found, operation(found)
        conflicts = check_change(before, after, store.patch, force=how.force)
        check_stale(before, after, force=how.force or bool(awaiting))
        return after

    document = store.update(checked, action=action, dry_run=how.dry_run, expect=generation)
    return Changed(
        before=before,
        document=document,
        conflicts=conflicts,
        replaced=replaced,
        awaiting=awaiting,
        dry_run=how.dry_run,
    )


def _to(state: StackState) -> Operation:
    return lambda _: state
