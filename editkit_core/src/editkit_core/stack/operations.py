"""Changes of a stack, as functions from one state to the next.

None of them asks whether patches become stale; :func:`check_stale` compares two states for that.
Nothing here imports torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence

import attrs

from editkit_core.errors import StackConflictError, StackError, StaleEntryError
from editkit_core.patch.digests import digest_of
from editkit_core.stack.state import EntryState, Mode, StackState

BASE = "base"
_MOST_FOR_SUBSETS = 10


def push(state: StackState, entry: EntryState) -> StackState:
    """Put a new entry on top of the applied ones.

    Entries that it replaces stay below it and are shadowed while it counts. What it was computed
    on is looked up among the others that are effective, and recorded in ``depends_on``.

    Raises:
        StackConflictError: The patch is in the stack already.
    """
    if any(entry.id == known.id for known in state.entries):
        raise StackConflictError(
            f"The patch {entry.label} is in the stack already. Change it there: enable, scale, "
            "move or remove.",
            patch=entry.id,
        )
    entry = attrs.evolve(entry, depends_on=_dependencies(state, entry))
    place = state.position
    entries = (*state.entries[:place], entry, *state.entries[place:])
    return StackState(entries=entries, position=place + 1)


def go_to(state: StackState, position: int) -> StackState:
    """Apply or unapply from the top until ``position`` entries are applied.

    Raises:
        StackError: There are not so many.
    """
    if position > len(state.entries):
        raise StackError(
            "All patches of the stack are applied already. Push a patch file to add one.",
            position=position,
        )
    if position < 0:
        raise StackError("No patch of the stack is applied, so none can be popped.")
    return attrs.evolve(state, position=position)


def position_of(state: StackState, reference: str) -> int:
    """Return the position in which a patch is the top; 0 for ``base``."""
    return 0 if reference == BASE else state.index(reference) + 1


def enable(state: StackState, reference: str) -> StackState:
    """Let an entry count again."""
    return _with(state, reference, enabled=True)


def disable(state: StackState, reference: str) -> StackState:
    """Leave an entry out; it keeps its place."""
    return _with(state, reference, enabled=False)


def scale(state: StackState, reference: str, factor: float) -> StackState:
    """Set the factor on an entry's change."""
    return _with(state, reference, scale=factor)


def set_mode(state: StackState, reference: str, mode: Mode) -> StackState:
    """Set how an entry is realised."""
    return _with(state, reference, mode=mode)


def move(state: StackState, reference: str, place: int) -> StackState:
    """Put an entry to another place, counted from 0; how many are applied stays as it is.

    Raises:
        StackError: There is no such place.
    """
    here = state.index(reference)
    if not 0 <= place < len(state.entries):
        raise StackError(
            f"There is no place {place + 1} in a stack of {len(state.entries)}. Choose one from 1 "
            f"to {len(state.entries)}.",
            place=place,
        )
    entries = list(state.entries)
    entries.insert(place, entries.pop(here))
    return attrs.evolve(state, entries=entries)


def remove(state: StackState, reference: str) -> StackState:
    """Take an entry out of the stack, wherever it is."""
    gone = state.index(reference)
    entries = (*state.entries[:gone], *state.entries[gone + 1 :])
    return StackState(entries=entries, position=state.position - (gone < state.position))


def replace(state: StackState, old: str, new: EntryState) -> StackState:
    """Put ``new`` in the place of ``old``; what stood on ``old`` is stale afterwards.

    What replaced ``old`` replaces ``new``.
    """
    place = state.index(old)
    below = attrs.evolve(state, entries=state.entries[:place], position=min(place, state.position))
    new = attrs.evolve(new, depends_on=_dependencies(below, new))
    gone = state.entries[place].id
    rest = taking_over((*state.entries[:place], *state.entries[place + 1 :]), [gone], [new.id])
    return attrs.evolve(state, entries=(*rest[:place], new, *rest[place:]))


def taking_over(
    entries: Sequence[EntryState], gone: Collection[str], new: Sequence[str]
) -> tuple[EntryState, ...]:
    """Return entries that replace ``new`` where they replaced one of ``gone``."""
    return tuple(
        attrs.evolve(entry, replaces=(*entry.replaces, *new))
        if not set(gone).isdisjoint(entry.replaces)
        else entry
        for entry in entries
    )


def check_stale(before: StackState, after: StackState, *, force: bool = False) -> None:
    """Refuse a change by which an active entry becomes stale.

    Raises:
        StaleEntryError: One does, and ``force`` is false.
    """
    known = {entry.id for entry in before.stale}
    fresh = [entry for entry in after.stale if entry.id not in known]
    if fresh and not force:
        names = ", ".join(entry.label for entry in fresh)
        raise StaleEntryError(
            f"{names} would be stale: it would no longer stand on the patches it was computed on. "
            "Nothing was changed. Compute it again with --rebase, or keep it as it is with "
            "--force.",
            stale=tuple(entry.id for entry in fresh),
        )


def _with(
    state: StackState,
    reference: str,
    **changes: object,
) -> StackState:
    place = state.index(reference)
    make: Callable[..., EntryState] = attrs.evolve
    entry = make(state.entries[place], **changes)
    return attrs.evolve(state, entries=(*state.entries[:place], entry, *state.entries[place + 1 :]))


def _dependencies(state: StackState, entry: EntryState) -> tuple[str, ...]:
    """Return the ids of the entries an entry was computed on; none when they are not there.

    The digest names a set without saying its members: all subsets of a small stack are tried, of a
    larger one its beginnings and ends, the largest first.
    """
    if entry.computed_on is None:
        return ()
    for chosen in _candidates(state.ground_of(entry)):
        if digest_of((e.content_digest, e.scale) for e in chosen) == entry.computed_on:
            return tuple(e.id for e in chosen)
    return ()


def _candidates(ground: tuple[EntryState, ...]) -> Iterator[tuple[EntryState, ...]]:
    for count in range(len(ground), 0, -1):
        if len(ground) <= _MOST_FOR_SUBSETS:
            yield from itertools.combinations(ground, count)
        else:
            yield from (ground[:count], ground[-count:])
