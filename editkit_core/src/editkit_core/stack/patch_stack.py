"""A stack of patches on a model in memory.

The model's weights are always cast_once(pristine + Σ scale · ΔW) over the effective entries,
whatever the way that led there, and the base's bytes again when the last one goes. What acts beside
the weights is on the model in the order of the stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, cast

import attrs

from editkit_core.errors import StackError
from editkit_core.patch.fingerprint import check_base
from editkit_core.patch.ledger import Wanted
from editkit_core.patch.modes import choose_mode, tell
from editkit_core.patch.pristine import PristineSource
from editkit_core.stack import operations
from editkit_core.stack.conflicts import CROSSTALK, Conflict, check_change, find_conflicts
from editkit_core.stack.state import EntryState, Mode, StackState, entry_of

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch


@attrs.frozen(kw_only=True, eq=False)
class StackEntry:
    """An entry with its patch.

    Attributes:
        patch: The patch.
        state: How it is in the stack.
    """

    patch: Patch
    state: EntryState


class PatchStack:
    """Patches on a model, each of which can be taken out wherever it is.

    Every change is made completely or not at all, and refused when it would make another patch
    stale: one that was computed on top of a patch that goes, moves above it or is scaled anew.
    References are ids, beginnings of ids, names, or ``#N`` counted from 1 at the bottom. As a
    context manager the stack is taken off at the end of the block.

    Args:
        model: The model; it may have other patches on it.
        pristine: Where the way back is kept: ``snapshot`` in memory, ``checkpoint`` in the model's
            own files where they hold the tensors bit for bit.
    """

    def __init__(self, model: EditableModel, *, pristine: PristineSource = "snapshot") -> None:
        self.model = model
        self._pristine: PristineSource = pristine
        self._state = StackState()
        self._patches: dict[str, Patch] = {}
        self._tokens: dict[str, int] = {}

    @classmethod
    def restore(
        cls,
        model: EditableModel,
        state: StackState,
        patches: Mapping[str, Patch],
        *,
        pristine: PristineSource = "snapshot",
    ) -> PatchStack:
        """Put a whole stack on a model, as one change.

        Args:
            model: The model.
            state: What the stack says.
            patches: The patches by id; those of waiting and shadowed entries may be missing.
            pristine: See the class.

        Raises:
            PatchError: A patch does not fit the model.
        """
        stack = cls(model, pristine=pristine)
        check_base(model, *(patches[entry.id] for entry in state.effective))
        stack._patches = dict(patches)
        stack._become(state)
        return stack

    @property
    def state(self) -> StackState:
        """What the stack says, as a value."""
        return self._state

    @property
    def entries(self) -> tuple[StackEntry, ...]:
        """The entries with their patches, bottom first."""
        return tuple(
            StackEntry(patch=self._patches[entry.id], state=entry) for entry in self._state.entries
        )

    def __len__(self) -> int:
        return len(self._state.entries)

    def digest(self) -> str | None:
        """Return the stack digest of the effective entries; None for the bare base."""
        return self._state.digest()

    def push(
        self,
        patch: Patch,
        *,
        enabled: bool = True,
        scale: float = 1.0,
        mode: str = "auto",
        force: bool = False,
    ) -> StackEntry:
        """Put a patch on top of the applied ones.

        An entry that the patch says it replaces is shadowed: it stays, and shows again when the
        patch goes.

        Args:
            patch: The patch.
            enabled: Whether it counts at once.
            scale: Factor on its change.
            mode: ``merge``, ``overlay``, or ``auto``; see :func:`editkit_core.patch.apply_patch`.
            force: Accept conflicts, and that patches become stale.

        Raises:
            BaseMismatchError: The patch was made for another base.
            StackConflictError: It is there already, or contradicts or disturbs another.
            StaleEntryError: It was computed on patches that are not there.
            PatchError: It cannot be realised on this model.
        """
        check_base(self.model, patch)
        entry = entry_of(patch, enabled=enabled, scale=scale, mode=self._mode(patch, mode, scale))
        state = operations.push(self._state, entry)
        self._patches = {**self._patches, patch.header.id: patch}
        try:
            self._change(state, force)
        finally:
            self._forget()
        return self.entries[state.index(patch.header.id)]

    def pop(self, *, force: bool = False) -> None:
        """Unapply the top; it stays in the stack, waiting. What it replaces shows again.

        Raises:
            StackError: No patch is applied.
            StaleEntryError: What shows again does not stand on what it was computed on.
        """
        self._change(operations.go_to(self._state, self._state.position - 1), force)

    def go_to(self, reference: str, *, force: bool = False) -> None:
        """Apply or unapply until an entry is the top; ``base`` unapplies all.

        Raises:
            UnknownEntryError: There is no such entry.
            StaleEntryError: An entry does not stand on what it was computed on.
        """
        position = operations.position_of(self._state, reference)
        self._change(operations.go_to(self._state, position), force)

    def enable(self, reference: str, *, force: bool = False) -> None:
        """Let an entry count again."""
        self._change(operations.enable(self._state, reference), force)

    def disable(self, reference: str, *, force: bool = False) -> None:
        """Leave an entry out; it keeps its place.

        Raises:
            UnknownEntryError: There is no such entry.
            StaleEntryError: Another was computed on top of it, and ``force`` is false.
        """
        self._change(operations.disable(self._state, reference), force)

    def scale(self, reference: str, factor: float, *, force: bool = False) -> None:
        """Set the factor on an entry's change.

        Raises:
            UnknownEntryError: There is no such entry.
            InvalidParameterError: The factor is 0 or not finite.
            StaleEntryError: Another was computed on top of it, and ``force`` is false.
        """
        self._change(operations.scale(self._state, reference, factor), force)

    def set_mode(self, reference: str, mode: str) -> None:
        """Set how an entry is realised: ``merge``, ``overlay`` or ``auto``."""
        entry = self._state.entry(reference)
        wanted = self._mode(self._patches[entry.id], mode, entry.scale)
        self._change(operations.set_mode(self._state, reference, wanted), force=False)

    def move(self, reference: str, place: int, *, force: bool = False) -> None:
        """Put an entry to another place, counted from 0 at the bottom.

        Raises:
            UnknownEntryError: There is no such entry.
            StackError: There is no such place.
            StaleEntryError: It would get above one that was computed on it.
        """
        self._change(operations.move(self._state, reference, place), force)

    def remove(self, reference: str, *, force: bool = False) -> Patch:
        """Take an entry out, wherever it is, and return its patch.

        Raises:
            UnknownEntryError: There is no such entry.
            StaleEntryError: Another was computed on top of it, and ``force`` is false.
        """
        patch = self._patches[self._state.entry(reference).id]
        self._change(operations.remove(self._state, reference), force)
        self._forget()
        return patch

    def clear(self) -> None:
        """Take every entry out; the model is the base again, bit for bit."""
        self._become(StackState())
        self._forget()

    def become(self, state: StackState, patches: Mapping[str, Patch] | None = None) -> None:
        """Change to another state of the stack, as one change and without asking about staleness.

        Args:
            state: The state.
            patches: Patches that are not in the stack yet, by id.

        Raises:
            StackError: A patch of the state is not at hand.
            PatchError: A patch does not fit the model.
        """
        held = {**self._patches, **(patches or {})}
        missing = [entry.label for entry in state.entries if entry.id not in held]
        if missing:
            raise StackError(f"The patch {missing[0]} is not at hand. Give it with the state.")
        fresh = [entry.id for entry in state.effective if entry.id not in self._patches]
        check_base(self.model, *(held[name] for name in fresh))
        self._patches = held
        try:
            self._become(state)
        finally:
            self._forget()

    def conflicts(self, *, threshold: float = CROSSTALK) -> tuple[Conflict, ...]:
        """Return what the entries do to one another; see :mod:`editkit_core.stack.conflicts`."""
        return find_conflicts(_pairs(self._state, self._patches), threshold=threshold)

    def __enter__(self) -> PatchStack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def _mode(self, patch: Patch, mode: str, scale: float) -> Mode:
        if mode != "auto":
            return cast(Mode, mode)
        choice = choose_mode(self.model, patch, scale=scale)
        tell(choice)
        return choice.mode

    def _change(self, state: StackState, force: bool) -> None:
        check_change(self._state, state, lambda entry: self._patches[entry.id], force=force)
        operations.check_stale(self._state, state, force=force)
        self._become(state)

    def _become(self, state: StackState) -> None:
        """Put on and take off what differs, in one change of the model."""
        before = {entry.id: entry for entry in self._state.effective}
        after = {entry.id: entry for entry in state.effective}
        again = _out_of_order(self._beside(before.values()), self._beside(after.values()))
        kept = {
            name
            for name, entry in after.items()
            if name not in again and _same_effect(entry, before.get(name))
        }
        gone = [name for name in before if name not in kept]
        new = [entry for name, entry in after.items() if name not in kept]
        wanted = [Wanted(patch=self._patches[e.id], mode=e.mode, scale=e.scale) for e in new]
        tokens = self.model.ledger.change(
            add=wanted,
            remove=[self._tokens[name] for name in gone],
            pristine=self._pristine,
        )
        for name in gone:
            del self._tokens[name]
        self._tokens.update(zip((entry.id for entry in new), tokens, strict=True))
        self._state = state

    def _beside(self, entries: Iterable[EntryState]) -> list[EntryState]:
        """Return the entries that act beside the weights, where order matters."""
        return [entry for entry in entries if self._patches[entry.id].module_entries]

    def _forget(self) -> None:
        held = {entry.id for entry in self._state.entries}
        self._patches = {name: patch for name, patch in self._patches.items() if name in held}


def _out_of_order(before: Sequence[EntryState], after: Sequence[EntryState]) -> set[str]:
    """Return the ids that must come off and on again: all from where the two first differ."""
    same = 0
    for old, new in zip(before, after, strict=False):
        if old.id != new.id or not _same_effect(old, new):
            break
        same += 1
    return {entry.id for entry in (*before[same:], *after[same:])}


def _same_effect(left: EntryState, right: EntryState | None) -> bool:
    return right is not None and (left.scale, left.mode) == (right.scale, right.mode)


def _pairs(state: StackState, patches: Mapping[str, Patch]) -> list[tuple[EntryState, Patch]]:
    return [(entry, patches[entry.id]) for entry in state.entries if entry.id in patches]
