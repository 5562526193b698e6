"""Check that a stack's folder holds what it says, and that the base gives what it says.

Every patch file is read, every touched tensor is computed anew from the base and compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from editkit_core.errors import EditkitError, StackDamagedError
from editkit_core.patch.verify import Checks, VerifyRow
from editkit_core.stack.store.base import base_digest, file_digests
from editkit_core.stack.store.document import StackDocument, TensorResult
from editkit_core.stack.store.garbage import find_garbage
from editkit_core.stack.store.history import History
from editkit_core.stack.store.lock_file import LOCK_FILE, lock_problem
from editkit_core.stack.store.objects import Objects
from editkit_core.stack.store.results import compute_results, merged_entries

if TYPE_CHECKING:
    from editkit_core.patch.checkpoint import CheckpointSource
    from editkit_core.patch.format import Patch
    from editkit_core.stack.store.store import StackStore
    from editkit_core.types import Progress


@attrs.frozen(kw_only=True)
class DoctorReport(Checks):
    """The answers to all checks of a stack.

    Attributes:
        folder: The stack's folder.
        generation: Its version.
        rows: One a check, in order.
    """

    folder: Path
    generation: int
    rows: tuple[VerifyRow, ...]


def examine(
    store: StackStore, *, full: bool = False, progress: Progress | None = None
) -> DoctorReport:
    """Check a stack; nothing is changed.

    What another writer changes meanwhile may show as a difference: run it again then.

    Args:
        store: The stack; it is read again.
        full: Hash every weights file of the base too.
        progress: Where to report to, for the hashing.

    Raises:
        StackDamagedError: ``stack.json`` itself cannot be read.
    """
    document = store.reload()
    patches, rows = _patches(store, document)
    rows = [_row("stack.json", f"version {document.generation}, checksum right"), *rows]
    rows += [_lock(store.folder, document), *_leftovers(store.folder, document)]
    try:
        source = store.source()
    except EditkitError as error:
        rows.append(_row("base", error.message, ok=False))
    else:
        rows += _base(source, document, full, progress)
        rows += _tensors(source, document, patches)
    return DoctorReport(folder=store.folder, generation=document.generation, rows=tuple(rows))


def _patches(
    store: StackStore, document: StackDocument
) -> tuple[dict[str, Patch], list[VerifyRow]]:
    """Read every patch file; return those that hold, and a row for each that does not."""
    objects = Objects(store.folder)
    read, rows = {}, []
    for entry in document.state.entries:
        try:
            read[entry.id] = objects.read(entry, store.kinds)
        except EditkitError as error:
            rows.append(_row(f"patch {entry.id}", error.message, ok=False))
    count = len(document.state.entries)
    if not rows:
        rows.append(_row("patches", f"{count} patch files are there, every digest right"))
    return read, rows


def _lock(folder: Path, document: StackDocument) -> VerifyRow:
    problem = lock_problem(folder / LOCK_FILE, document)
    if problem is None:
        return _row(LOCK_FILE, "agrees with stack.json")
    detail = f"{problem}; `editkit stack doctor` writes it anew unless it is a dry run"
    return _row(LOCK_FILE, detail, ok=False)


def _leftovers(folder: Path, document: StackDocument) -> Iterator[VerifyRow]:
    try:
        garbage = find_garbage(folder, document)
    except StackDamagedError as error:
        detail = f"{error.message} Or drop it with `editkit stack gc --drop-history`."
        yield _row("history", detail, ok=False, fatal=False)
        return
    kept = [g for g in History(folder).generations() if g <= document.generation]
    yield _row("history", f"{len(kept)} versions")
    if garbage.files:
        detail = f"{len(garbage.files)} files that nothing refers to; `editkit stack gc` removes"
        yield _row("left behind", f"{detail} them", ok=False, fatal=False)
    else:
        yield _row("left behind", "nothing")


def _base(
    source: CheckpointSource, document: StackDocument, full: bool, progress: Progress | None
) -> Iterator[VerifyRow]:
    base = document.base
    missing = [name for name in sorted(base.files) if not (source.folder / name).is_file()]
    if missing:
        yield _row("base", f"{source.folder} lacks {', '.join(missing)}", ok=False)
        return
    if not full:
        yield _row("base", f"{base.public}: {len(base.files)} weights files are there")
        return
    found = file_digests(source.folder, sorted(base.files), progress)
    for name, expected in sorted(base.files.items()):
        same = found[name] == expected
        detail = "is as it was when the stack was made"
        if not same:
            detail = f"has the digest {found[name]}, the stack was made on {expected}"
        yield _row(f"base {name}", detail, ok=same)
    yield _row("base", base.digest, ok=base_digest(found) == base.digest)


def _tensors(
    source: CheckpointSource, document: StackDocument, patches: dict[str, Patch]
) -> Iterator[VerifyRow]:
    merged = merged_entries(document.state)
    lacking = sorted(merged.keys() - patches.keys())
    if lacking:
        why = f"cannot be computed without the patches {', '.join(lacking)}"
        yield _row("tensors", why, ok=False)
        return
    try:
        found = compute_results(source, [patches[key] for key in sorted(merged)], merged)
    except EditkitError as error:
        yield _row("tensors", error.message, ok=False)
        return
    for name in sorted(found.keys() | document.tensors.keys()):
        yield _compared(name, document.tensors.get(name), found.get(name))
    if not found and not document.tensors:
        yield _row("tensors", "none is changed")


def _compared(name: str, stated: TensorResult | None, found: TensorResult | None) -> VerifyRow:
    if stated == found and found is not None:
        count = len(found.patches)
        return _row(f"tensor {name}", f"{found.sha256}, from {count} patches, computed anew")
    said = "no change" if stated is None else stated.sha256
    gives = "no change" if found is None else found.sha256
    if said == gives:
        gives = f"that from {found}, the stack says {stated}"
    return _row(f"tensor {name}", f"the stack says {said}, the patches give {gives}", ok=False)


def _row(check: str, detail: str, *, ok: bool = True, fatal: bool = True) -> VerifyRow:
    return VerifyRow(check=check, ok=ok, detail=detail, fatal=fatal)
