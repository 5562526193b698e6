"""What a stack's folder holds that nothing refers to, and how it is removed.

Left behind by stopped writers, or by patches that were taken out. References go before what they
refer to, so stopping a removal halfway harms nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from editkit_core.atomic import sync_folder
from editkit_core.errors import WriteFailedError
from editkit_core.stack.store.document import StackDocument
from editkit_core.stack.store.history import History
from editkit_core.stack.store.objects import Objects


@attrs.frozen(kw_only=True)
class GcReport:
    """What was removed, or would be.

    Attributes:
        temporary: Half-written files of stopped writers, relative to the stack's folder.
        history: Versions of the stack.
        objects: Patch files.
        nbytes: Size of them all.
        dry_run: Whether nothing was removed.
    """

    temporary: tuple[str, ...]
    history: tuple[str, ...]
    objects: tuple[str, ...]
    nbytes: int
    dry_run: bool

    @property
    def files(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.temporary, *self.history, *self.objects)


def find_garbage(
    folder: Path, document: StackDocument, *, drop_history: bool = False, dry_run: bool = True
) -> GcReport:
    """List what nothing refers to.

    Args:
        folder: The stack's folder.
        document: What it says now.
        drop_history: Whether earlier versions do not count, and go too.
        dry_run: What to say about it in the report.

    Raises:
        StackDamagedError: An earlier version that counts cannot be read.
    """
    history, objects = History(folder), Objects(folder)
    kept = [g for g in history.generations() if _counts(g, document, drop_history)]
    gone = [history.path(g) for g in history.generations() if g not in kept]
    used = {entry.file_sha256 for entry in document.state.entries}
    for generation in kept:
        if generation != document.generation:
            used |= {entry.file_sha256 for entry in history.read(generation).state.entries}
    unused = [path for sha256, path in objects.stored() if sha256 not in used]
    temporary = list(_temporary(folder))
    return GcReport(
        temporary=_relative(temporary, folder),
        history=_relative(gone, folder),
        objects=_relative(unused, folder),
        nbytes=sum(_size(path) for path in (*temporary, *gone, *unused)),
        dry_run=dry_run,
    )


def remove_garbage(folder: Path, garbage: GcReport) -> None:
    """Remove what :func:`find_garbage` listed, while holding the right to write.

    Raises:
        WriteFailedError: A file cannot be removed.
    """
    for names in (garbage.temporary, garbage.history, garbage.objects):
        paths = [folder / name for name in names]
        try:
            for path in paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise WriteFailedError(
                f"Cannot remove {error.filename}: {error.strerror or error}. Check that the "
                "stack's folder may be written to, and run it again.",
                path=str(error.filename),
                errno=error.errno,
            ) from error
        for parent in sorted({path.parent for path in paths}):
            sync_folder(parent)


def _counts(generation: int, document: StackDocument, drop_history: bool) -> bool:
    if drop_history:
        return generation == document.generation
    return generation <= document.generation


def _temporary(folder: Path) -> Iterator[Path]:
    for pattern in (".*.tmp", "history/.*.tmp", "objects/??/.*.tmp"):
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())


def _relative(paths: Iterable[Path], folder: Path) -> tuple[str, ...]:
    return tuple(path.relative_to(folder).as_posix() for path in paths)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another writer finished with it
        return 0
