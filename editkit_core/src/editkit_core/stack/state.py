"""What a stack says: its patches from the bottom up, which are applied, and how.

The first ``position`` entries are *applied*; of these the enabled ones are *active*. The others
wait above. An active entry that another active one replaces is *shadowed*; the rest are
*effective*: the model is the base plus these. Values only; nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import attrs

from editkit_core.errors import InvalidParameterError, UnknownEntryError, did_you_mean
from editkit_core.patch.digests import digest_of
from editkit_core.patch.replacing import replaced_by

if TYPE_CHECKING:
    from editkit_core.patch.format import Patch

Mode = Literal["merge", "overlay"]


@attrs.frozen(kw_only=True)
class EntryState:
    """One patch of a stack.

    Attributes:
        id: The patch's id.
        name: Its name for people; may be empty.
        content_digest: Digest of its content.
        file_sha256: Digest of its file; empty for a patch that is only in memory.
        enabled: Whether it counts when it is applied.
        scale: Factor on its change.
        mode: ``merge`` into the weights, or ``overlay`` as a side path.
        computed_on: Stack digest it was computed on; None for the bare base.
        depends_on: Ids of the patches of this stack that make up that digest.
        replaces: Ids of the patches that it replaces.
        extends: Whether it holds all of what it replaces, so what stands on those stands on it.
    """

    id: str
    name: str = ""
    content_digest: str
    file_sha256: str = ""
    enabled: bool = True
    scale: float = attrs.field(default=1.0)
    mode: Mode = attrs.field(default="merge")
    computed_on: str | None = None
    depends_on: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    extends: bool = False

    @scale.validator
    def _check_scale(self, _: object, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _usable(value):
            raise InvalidParameterError(
                f"The scale is {value!r}; it must be a number other than 0. Disable a patch to "
                "leave it out.",
                scale=value,
            )

    @mode.validator
    def _check_mode(self, _: object, value: str) -> None:
        if value not in get_args(Mode):
            raise InvalidParameterError(
                f"There is no mode {value!r}. Use merge or overlay.", mode=value
            )

    @property
    def label(self) -> str:
        """What to call it in a message: its id, and its name if it has one."""
        return f"{self.id} ({self.name})" if self.name else self.id


def _tuple(entries: Iterable[EntryState]) -> tuple[EntryState, ...]:
    return tuple(entries)


@attrs.frozen(kw_only=True)
class StackState:
    """A whole stack.

    Attributes:
        entries: The patches, bottom first.
        position: How many of them are applied, from the bottom.
    """

    entries: tuple[EntryState, ...] = attrs.field(default=(), converter=_tuple)
    position: int = attrs.field(default=0)

    def __attrs_post_init__(self) -> None:
        ids = [entry.id for entry in self.entries]
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise InvalidParameterError(f"The stack lists {twice} twice. Keep one.", id=twice)
        if type(self.position) is not int or not 0 <= self.position <= len(ids):
            raise InvalidParameterError(
                f"The stack's position is {self.position!r}; it must be from 0 to {len(ids)}.",
                position=self.position,
            )

    @property
    def applied(self) -> tuple[EntryState, ...]:
        """The applied entries, bottom first, enabled or not."""
        return self.entries[: self.position]

    @cached_property
    def active(self) -> tuple[EntryState, ...]:
        """The applied and enabled entries, bottom first."""
        return tuple(entry for entry in self.applied if entry.enabled)

    @cached_property
    def shadowed(self) -> frozenset[str]:
        """Ids of the patches that an active entry replaces, also through one another."""
        return frozenset(self._replaced_by(self.active))

    @cached_property
    def effective(self) -> tuple[EntryState, ...]:
        """The active entries that no other one replaces, bottom first."""
        shadowed = self.shadowed
        return tuple(entry for entry in self.active if entry.id not in shadowed)

    @property
    def top(self) -> EntryState | None:
        """The uppermost applied entry."""
        return self.applied[-1] if self.position else None

    def digest(self) -> str | None:
        """Return the stack digest of the effective entries; None for the bare base."""
        return digest_of((entry.content_digest, entry.scale) for entry in self.effective)

    def index(self, reference: str) -> int:
        """Return the place of an entry, counted from 0 at the bottom.

        Args:
            reference: An id, the beginning of one, a name, or ``#N`` counted from 1.

        Raises:
            UnknownEntryError: None or several are meant.
        """
        number = reference[1:] if reference.startswith("#") else ""
        if number.isdecimal() and 1 <= int(number) <= len(self.entries):
            return int(number) - 1
        exact = [i for i, entry in enumerate(self.entries) if reference in (entry.id, entry.name)]
        found = exact or [
            i
            for i, entry in enumerate(self.entries)
            if reference and (entry.id.startswith(reference) or entry.id[3:].startswith(reference))
        ]
        if len(found) == 1:
            return found[0]
        known = [word for entry in self.entries for word in (entry.id, entry.name) if word]
        if found:
            meant = ", ".join(self.entries[i].label for i in found)
            raise UnknownEntryError(
                f"{reference!r} may be any of {meant}. Give a whole id, or #N.", reference=reference
            )
        holds = ", ".join(entry.label for entry in self.entries) or "nothing"
        raise UnknownEntryError(
            f"The stack has no patch {reference!r}; it holds {holds}."
            f"{did_you_mean(reference, known)}",
            reference=reference,
        )

    def entry(self, reference: str) -> EntryState:
        """Return the entry that :meth:`index` finds."""
        return self.entries[self.index(reference)]

    def ground_of(self, entry: EntryState) -> tuple[EntryState, ...]:
        """Return the active entries that an entry stands on, bottom first.

        They are below it and neither replaced by it nor shadowed. What an entry above it extends
        still counts: that one holds all of it. For an entry that is not active all are below it.
        """
        active = self.active
        place = next((i for i, other in enumerate(active) if other.id == entry.id), len(active))
        others = [*active[:place], *(other for other in active[place:] if not other.extends)]
        gone = self._replaced_by([entry, *others])
        return tuple(other for other in active[:place] if other.id not in gone)

    def is_stale(self, entry: EntryState) -> bool:
        """Say whether an entry does not stand on the patches it was computed on.

        It does when those are effective, below it and scaled as they were; others may be there
        too.
        """
        if entry.computed_on is None:
            return False
        standing = [e for e in self.ground_of(entry) if e.id in entry.depends_on]
        found = digest_of((e.content_digest, e.scale) for e in standing)
        return found != entry.computed_on

    @cached_property
    def stale(self) -> tuple[EntryState, ...]:
        """The effective entries that do not stand on what they were computed on."""
        return tuple(entry for entry in self.effective if self.is_stale(entry))

    def _replaced_by(self, entries: Iterable[EntryState]) -> set[str]:
        known = {entry.id: entry.replaces for entry in self.entries}
        given = {entry.id: entry.replaces for entry in entries}
        return replaced_by(given, known | given)


def entry_of(
    patch: Patch,
    *,
    enabled: bool = True,
    scale: float = 1.0,
    mode: Mode | None = None,
    file_sha256: str = "",
) -> EntryState:
    """Return a patch's entry, before it is in a stack.

    Args:
        patch: The patch.
        enabled: Whether it counts when it is applied.
        scale: Factor on its change.
        mode: How it is realised; None takes ``merge``, or ``overlay`` where it changes no weight.
        file_sha256: Digest of its file.
    """
    header = patch.header
    if mode is None:
        mode = "merge" if patch.weight_entries else "overlay"
    return EntryState(
        id=header.id,
        name=header.name,
        content_digest=header.content_digest,
        file_sha256=file_sha256,
        enabled=enabled,
        scale=scale,
        mode=mode,
        computed_on=header.computed_on,
        replaces=header.replaces,
        extends=bool(header.replaces) and not patch.weight_entries,
    )


def _usable(value: float) -> bool:
    return math.isfinite(value) and value != 0
