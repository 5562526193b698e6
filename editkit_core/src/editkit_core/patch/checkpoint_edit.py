"""Apply a patch to a checkpoint on disk: a new folder, which can be turned back bit for bit.

The source is only read. The new folder is built beside its place and renamed when complete.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from editkit_core.atomic import new_folder, sync_folder, write_file
from editkit_core.errors import RevertError
from editkit_core.patch import bits
from editkit_core.patch.checkpoint import CheckpointSource, Shard, read_shard
from editkit_core.patch.checkpoint_change import Change, changes
from editkit_core.patch.checkpoint_folders import check_out, check_source, files_of
from editkit_core.patch.checkpoint_record import (
    PRISTINE,
    RECORD,
    FileChange,
    FolderRecord,
    read_record,
)
from editkit_core.patch.checkpoint_undo import check_unchanged, read_pristine, write_undo
from editkit_core.patch.format import Patch
from editkit_core.patch.module_level import refuse_module_entries
from editkit_core.patch.shards import Hashed, file_sha256, with_replaced
from editkit_core.types import Progress, SilentProgress


@attrs.frozen(kw_only=True)
class FolderReport:
    """What was done to a folder, or would be.

    Attributes:
        folder: The folder.
        patch: The patch's id.
        tensors: Stored names of the changed tensors.
        weights: Names of the rewritten files.
        nbytes: Size of all files written.
        dry_run: Whether nothing was written.
    """

    folder: Path
    patch: str
    tensors: tuple[str, ...]
    weights: tuple[str, ...]
    nbytes: int
    dry_run: bool


def write_patched(
    source_folder: str | Path,
    patch: Patch,
    out_folder: str | Path,
    *,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> FolderReport:
    """Write a copy of a checkpoint folder with a patch merged in.

    Touched weights files keep their layout; everything else is copied. ``editkit.json``, the patch
    and the touched tensors' pristine bytes are put beside them, so :func:`revert_folder` can
    restore the weights files bit for bit.

    Args:
        source_folder: A Hugging Face checkpoint with safetensors weights, whole or sharded.
        patch: What to merge.
        out_folder: The folder to make.
        force: Replace an existing checkpoint folder.
        dry_run: Check everything and write nothing.
        progress: Where to report to.

    Raises:
        InputNotFoundError: The source is no such folder.
        BaseMismatchError: Its weights are not those the patch was made for.
        ApplyError: The source has a patch applied already, or a weight would overflow.
        ExportError: The patch acts beside the weights, which a checkpoint cannot hold.
        OutputExistsError: The output exists, or is the source.
        WriteFailedError: Writing failed; nothing was left.
    """
    source, out = CheckpointSource(source_folder), Path(out_folder)
    check_source(source.folder)
    check_out(source.folder, out, force)
    refuse_module_entries([patch], "a checkpoint")
    touched = changes(source, [(patch, 1.0)])
    files = sorted(files_of(source.folder))
    report = FolderReport(
        folder=out,
        patch=patch.header.id,
        tensors=tuple(sorted(touched)),
        weights=tuple(sorted({change.file for change in touched.values()})),
        nbytes=sum((source.folder / file).stat().st_size for file in files),
        dry_run=dry_run,
    )
    if not dry_run:
        shown = progress or SilentProgress()
        shown.start(f"Writing {out.name}", report.nbytes)
        try:
            with new_folder(out, replace=force) as folder:
                _fill(folder, source, files, patch, touched, shown)
        finally:
            shown.finish()
    return report


def copy_with(
    folder: Path,
    source: CheckpointSource,
    files: Iterable[Path],
    touched: Mapping[str, Change],
    progress: Progress,
) -> dict[str, str]:
    """Copy a checkpoint's files with some tensors changed; other bytes stay as they are.

    Args:
        folder: Where to; it exists.
        source: Where from.
        files: The files to copy, relative to the source's folder.
        touched: The changed tensors, by stored name.
        progress: Where to report to; it counts bytes.

    Returns:
        The digest of every rewritten weights file, by name.
    """
    by_file: dict[str, dict[str, memoryview]] = defaultdict(dict)
    for name, change in touched.items():
        by_file[change.file][name] = bits.as_bytes(change.patched)
    digests = {}
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if str(file) in by_file:
            pieces = Hashed(with_replaced(source.shard(str(file)), by_file[str(file)]))
            write_file(target, pieces)
            digests[str(file)] = pieces.sha256
        else:
            shutil.copyfile(source.folder / file, target)
        progress.advance(target.stat().st_size, str(file))
    return digests


def _fill(
    folder: Path,
    source: CheckpointSource,
    files: Iterable[Path],
    patch: Patch,
    touched: Mapping[str, Change],
    progress: Progress,
) -> None:
    weights = {
        file: FileChange(source_sha256=file_sha256(source.folder / file), patched_sha256=digest)
        for file, digest in copy_with(folder, source, files, touched, progress).items()
    }
    write_undo(folder, source.folder.resolve().name, patch, touched, weights)


def revert_folder(folder: str | Path, *, dry_run: bool = False) -> FolderReport:
    """Restore the weights files of a folder that ``write_patched`` made.

    Every file's digest is compared with the source's before the file takes its place. If this is
    interrupted between two files, running it again finishes the work.

    Args:
        folder: The folder.
        dry_run: Check everything and write nothing.

    Raises:
        InputNotFoundError: The folder has no patch applied, or a file is missing.
        PatchFormatError: ``editkit.json`` or a weights file is damaged.
        RevertError: Weights were changed from outside; nothing is written.
        WriteFailedError: Writing failed; the file concerned is as it was.
    """
    folder = Path(folder)
    record = read_record(folder)
    pristine = read_pristine(folder, record)
    shards = {file: read_shard(folder / file) for file in record.weights}
    for name in record.tensors:
        check_unchanged(name, record, shards, folder)
    by_file: dict[str, dict[str, bytes]] = defaultdict(dict)
    for name, change in record.tensors.items():
        by_file[change.file][name] = pristine[name]
    for file, shard in shards.items():
        pieces = _checked(shard, by_file[file], record.weights[file].source_sha256)
        if dry_run:
            for _ in pieces:
                pass
        else:
            write_file(folder / file, pieces, force=True)
    if not dry_run:
        _forget(folder, record)
    return FolderReport(
        folder=folder,
        patch=record.patch.id,
        tensors=tuple(sorted(record.tensors)),
        weights=tuple(sorted(record.weights)),
        nbytes=sum((folder / file).stat().st_size for file in record.weights),
        dry_run=dry_run,
    )


def _checked(shard: Shard, tensors: dict[str, bytes], expected: str) -> Iterator[bytes]:
    pieces = Hashed(with_replaced(shard, tensors))
    yield from pieces
    if pieces.sha256 != expected:
        raise RevertError(
            f"{shard.path} was changed besides the patch: restored it would have the digest "
            f"{pieces.sha256}, the source had {expected}. It was left as it is.",
            expected=expected,
            found=pieces.sha256,
        )


def _forget(folder: Path, record: FolderRecord) -> None:
    """Remove the record first, so that a folder without it is never half of anything."""
    for file in (RECORD, PRISTINE, record.patch.file):
        (folder / file).unlink(missing_ok=True)
    sync_folder(folder)
