"""A stack of patches in a folder.

::

    stack.json      what the stack is: the truth
    editkit.lock    the same as TOML, to be shared and compared
    objects/ab/…    the patch files, each under the digest of its bytes
    history/…       every committed version of stack.json

A patch file is complete on disk before anything names it, and every file appears by a rename, so a
writer may be stopped at any moment and the disk may fill up: the folder still holds the state
before or the state after. Writers take turns; readers wait for nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from editkit_core.atomic import new_folder, write_file
from editkit_core.errors import (
    StackConflictError,
    StackDamagedError,
    StackError,
)
from editkit_core.stack.state import EntryState, StackState, entry_of
from editkit_core.stack.store.base import find_base, record_base
from editkit_core.stack.store.document import StackDocument, now
from editkit_core.stack.store.folder import check_free, read_document, write_version
from editkit_core.stack.store.garbage import GcReport, find_garbage, remove_garbage
from editkit_core.stack.store.history import History
from editkit_core.stack.store.lock_file import LOCK_FILE, encode_lock, lock_problem
from editkit_core.stack.store.objects import Objects, patch_digest
from editkit_core.stack.store.results import next_results
from editkit_core.stack.store.writer import writing

if TYPE_CHECKING:
    from editkit_core.patch.checkpoint import CheckpointSource
    from editkit_core.patch.format import Patch
    from editkit_core.patch.kinds import Kinds
    from editkit_core.stack.store.doctor import DoctorReport
    from editkit_core.types import Progress

_WAIT_S = 10.0


class StackStore:
    """A stack in a folder; make one with :meth:`init` or :meth:`open`.

    Attributes:
        folder: The folder.
        kinds: Entry kinds to accept; None means the core's.
        wait_s: How long a change waits for another writer, in seconds.
        document: What the folder said when it was last read or changed from here.
    """

    def __init__(self, folder: Path, document: StackDocument, *, kinds: Kinds | None) -> None:
        self.folder = folder
        self.kinds = kinds
        self.wait_s = _WAIT_S
        self.document = document
        self._objects = Objects(folder)
        self._history = History(folder)
        self._given: dict[str, Patch] = {}  # by file digest; a concurrent gc may have removed one
        self._source: CheckpointSource | None = None

    # -- making and opening --

    @classmethod
    def init(
        cls,
        folder: str | Path,
        *,
        model: str,
        base: Path,
        revision: str | None = None,
        kinds: Kinds | None = None,
        progress: Progress | None = None,
    ) -> StackStore:
        """Make an empty stack.

        Args:
            folder: The folder to make; an empty one may exist.
            model: What to load the base by: a packaged name, a hub id or a folder.
            base: The folder that holds the base's files.
            revision: Hub revision.
            kinds: Entry kinds to accept; None means the core's.
            progress: Where to report to: every byte of the weights is hashed.

        Raises:
            OutputExistsError: The folder holds something already.
            InputNotFoundError: The base is no model folder with safetensors weights.
            ApplyError: A patch was merged into the base.
            WriteFailedError: Writing failed; nothing was left.
        """
        folder = Path(folder)
        check_free(folder)
        record = record_base(model, Path(base), revision=revision, progress=progress)
        document = StackDocument(
            generation=0, base=record, state=StackState(), tensors={}, action="init", time=now()
        )
        with new_folder(folder) as made:
            Objects(made).folder.mkdir()
            write_version(made, document)
        return cls(folder, document, kinds=kinds)

    @classmethod
    def open(cls, folder: str | Path, *, kinds: Kinds | None = None) -> StackStore:
        """Open a stack; needs no lock and changes nothing.

        Args:
            folder: The folder.
            kinds: Entry kinds to accept; None means the core's.

        Raises:
            InputNotFoundError: The folder holds no stack.
            StackDamagedError: It is damaged.
            StackError: It is of another version.
        """
        return cls(Path(folder), read_document(Path(folder)), kinds=kinds)

    # -- reading --

    @property
    def state(self) -> StackState:
        """The patches, as last read."""
        return self.document.state

    @property
    def generation(self) -> int:
        """The number of committed changes, as last read."""
        return self.document.generation

    def reload(self) -> StackDocument:
        """Read again what the folder says."""
        self.document = read_document(self.folder)
        return self.document

    def source(self) -> CheckpointSource:
        """Return the base's files.

        Raises:
            ModelNotFoundError: They are not on this machine.
        """
        if self._source is None:
            self._source = find_base(self.document.base)
        return self._source

    def patch(self, entry: EntryState) -> Patch:
        """Read a patch of the stack strictly.

        Raises:
            StackDamagedError: Its file is missing or was changed.
            StackConflictError: It was taken out by another writer since the stack was read.
            PatchError: It is refused, for example for an unknown kind.
        """
        if entry.file_sha256 in self._given:
            return self._given[entry.file_sha256]
        try:
            return self._objects.read(entry, self.kinds)
        except StackDamagedError:
            current = read_document(self.folder)
            if any(entry.file_sha256 == e.file_sha256 for e in current.state.entries):
                raise
            raise StackConflictError(
                f"{entry.label} was taken out of the stack {self.folder} meanwhile. Run the "
                "command again.",
                patch=entry.id,
            ) from None

    def history(self) -> list[StackDocument]:
        """Return every committed version that is kept, oldest first.

        Raises:
            StackDamagedError: One cannot be read.
        """
        kept = [g for g in self._history.generations() if g <= self.generation]
        return [self._history.read(generation) for generation in kept]

    # -- changing --

    def add(self, patch: Patch, *, dry_run: bool = False) -> EntryState:
        """Keep a patch's file, without putting the patch on the stack.

        Args:
            patch: The patch.
            dry_run: Write nothing; the entry then serves for ``update(..., dry_run=True)``.

        Returns:
            An entry for :func:`editkit_core.stack.operations.push`.

        Raises:
            StackLockedError: Another writer holds the folder.
            WriteFailedError: Writing failed; nothing was left.
        """
        sha256 = patch_digest(patch)
        self._given[sha256] = patch
        if not dry_run:
            with self._writing():
                self._objects.write(sha256, patch)
        return entry_of(patch, file_sha256=sha256)

    def update(
        self,
        change: Callable[[StackState], StackState],
        *,
        action: str,
        dry_run: bool = False,
        expect: int | None = None,
    ) -> StackDocument:
        """Change the stack: read it again, change it, compute the tensors, commit.

        A change that leaves the stack as it is commits nothing.

        Args:
            change: From the state that is on disk now to the new one.
            action: What the change is, for people.
            dry_run: Compute and check everything, write nothing.
            expect: Generation that the change was worked out on; None takes any.

        Returns:
            What the stack says now, or would say.

        Raises:
            StackLockedError: Another writer holds the folder.
            StackConflictError: Another writer committed since ``expect``.
            StackDamagedError: A patch file is missing or was changed.
            BaseMismatchError: A new patch does not fit the base.
            ApplyError: A weight would overflow.
            WriteFailedError: Writing failed; the stack is as it was.
        """
        if dry_run:
            return self._changed(change, action, expect)
        with self._writing():
            after = self._changed(change, action, expect)
            if after is self.document:
                self._write_lock()
            else:
                self._keep_objects(after.state)
                write_version(self.folder, after)
                self.document = after
            return after

    def restore(self, generation: int, *, dry_run: bool = False) -> StackDocument:
        """Make the stack again what it was; this is a new version, nothing is forgotten.

        Raises:
            StackError: There is no such version.
            StackDamagedError: It cannot be read, or a patch file of it is missing.
        """
        if generation > self.reload().generation:
            raise StackError(
                f"There is no version {generation} of this stack yet; it is at {self.generation}.",
                generation=generation,
            )
        former = self._history.read(generation).state
        return self.update(lambda _: former, action=f"restore {generation}", dry_run=dry_run)

    def write_lock(self) -> bool:
        """Write ``editkit.lock`` anew when it does not agree with the stack.

        A writer that was stopped at the end of its change leaves it behind; every change writes it.

        Returns:
            Whether it was written.

        Raises:
            StackLockedError: Another writer holds the folder.
            WriteFailedError: Writing failed; the old one is as it was.
        """
        with self._writing():
            return self._write_lock()

    def gc(self, *, dry_run: bool = False, drop_history: bool = False) -> GcReport:
        """Remove what nothing refers to: patch files, half-written files, uncommitted versions.

        Args:
            dry_run: List it only.
            drop_history: Remove earlier versions too, and the patch files only they refer to.

        Raises:
            StackLockedError: Another writer holds the folder.
            StackDamagedError: An earlier version cannot be read, so its patch files are unknown.
            WriteFailedError: A file cannot be removed.
        """
        if dry_run:
            return find_garbage(self.folder, self.reload(), drop_history=drop_history)
        with self._writing():
            garbage = find_garbage(
                self.folder, self.document, drop_history=drop_history, dry_run=False
            )
            remove_garbage(self.folder, garbage)
            self._write_lock()  # after making room for it
        return garbage

    def doctor(
        self, *, full: bool = False, repair: bool = False, progress: Progress | None = None
    ) -> DoctorReport:
        """Check everything the folder says; see :func:`editkit_core.stack.store.doctor.examine`."""
        from editkit_core.stack.store.doctor import examine

        if repair:
            self.write_lock()
        return examine(self, full=full, progress=progress)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the right to write, and read what the folder says now."""
        read_document(self.folder)  # where there is no stack, no lock must appear
        with writing(self.folder, self.wait_s):
            self.reload()
            yield

    def _changed(
        self, change: Callable[[StackState], StackState], action: str, expect: int | None
    ) -> StackDocument:
        before = self.reload()
        if expect is not None and before.generation != expect:
            raise StackConflictError(
                f"The stack {self.folder} was changed meanwhile: it is at version "
                f"{before.generation}, the change was worked out on version {expect}. Nothing was "
                "changed. Run the command again.",
                expected=expect,
                found=before.generation,
            )
        after = change(before.state)
        if after == before.state:
            return before
        self._check_objects(before.state, after)
        tensors = next_results(before.state, before.tensors, after, self.patch, self.source)
        return attrs.evolve(
            before,
            generation=before.generation + 1,
            state=after,
            tensors=tensors,
            action=action,
            time=now(),
        )

    def _check_objects(self, before: StackState, after: StackState) -> None:
        """Refuse to name a patch file that is nowhere."""
        known = {entry.file_sha256 for entry in before.entries}
        for entry in after.entries:
            if entry.file_sha256 in known or entry.file_sha256 in self._given:
                continue
            if not entry.file_sha256:
                raise StackError(
                    f"{entry.label} has no file in the stack {self.folder}. Add the patch with "
                    "StackStore.add and push the entry that gives.",
                    patch=entry.id,
                )
            self._objects.read(entry, self.kinds)

    def _keep_objects(self, state: StackState) -> None:
        """Write the files of given patches that a concurrent gc removed before they were named."""
        for entry in state.entries:
            if entry.file_sha256 in self._given and not self._objects.has(entry.file_sha256):
                self._objects.write(entry.file_sha256, self._given[entry.file_sha256])

    def _write_lock(self) -> bool:
        path = self.folder / LOCK_FILE
        if lock_problem(path, self.document) is None:
            return False
        write_file(path, [encode_lock(self.document)], force=True)
        return True
