"""What a patched checkpoint folder keeps so that it can be turned back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from editkit_core.atomic import write_file
from editkit_core.errors import InputNotFoundError, RevertError
from editkit_core.patch import bits, container
from editkit_core.patch.checkpoint import Shard, read_shard
from editkit_core.patch.checkpoint_change import Change
from editkit_core.patch.checkpoint_record import (
    PRISTINE,
    RECORD,
    SPEC,
    FileChange,
    FolderRecord,
    PatchRef,
    TensorChange,
)
from editkit_core.patch.format import Patch
from editkit_core.patch.io import SUFFIX
from editkit_core.patch.shards import Hashed, file_sha256


def write_undo(
    folder: Path,
    source: str,
    patch: Patch,
    touched: Mapping[str, Change],
    weights: Mapping[str, FileChange],
) -> None:
    """Write the patch, the pristine tensors and the record into a patched folder.

    Args:
        folder: The folder.
        source: Last part of the source folder's name.
        patch: The patch.
        touched: The tensors it changed, by stored name.
        weights: The rewritten weights files.
    """
    patch_file = folder / f"{patch.header.id}{SUFFIX}"
    patch.save(patch_file)
    pristine = Hashed(
        container.encode({}, {name: _raw(change) for name, change in touched.items()})
    )
    write_file(folder / PRISTINE, pristine)
    record = FolderRecord(
        spec=SPEC,
        base=patch.header.base.model,
        source=source,
        patch=PatchRef(
            id=patch.header.id,
            name=patch.header.name,
            content_digest=patch.header.content_digest,
            file=patch_file.name,
            sha256=file_sha256(patch_file),
        ),
        pristine_sha256=pristine.sha256,
        tensors={
            name: TensorChange(
                file=change.file,
                pristine_sha256=bits.sha256(change.pristine),
                patched_sha256=bits.sha256(change.patched),
            )
            for name, change in touched.items()
        },
        weights=weights,
    )
    write_file(folder / RECORD, [record.encode()])


def _raw(change: Change) -> container.RawTensor:
    return container.RawTensor(
        dtype=change.dtype,
        shape=tuple(change.pristine.shape),
        data=bits.as_bytes(change.pristine),
    )


def read_pristine(folder: Path, record: FolderRecord) -> dict[str, bytes]:
    """Return the tensors' bytes as they were, by stored name.

    Raises:
        RevertError: The file that holds them is missing or was changed.
    """
    path = folder / PRISTINE
    if not path.is_file() or file_sha256(path) != record.pristine_sha256:
        raise RevertError(
            f"{path} is missing or was changed, so the weights cannot be restored from it. Copy "
            f"the weights from the source ({record.source!r}) instead.",
            path=str(path),
        )
    shard = read_shard(path)
    found = {name: bytes(shard.read(slot)) for name, slot in shard.slots.items()}
    for name, change in record.tensors.items():
        if hashlib.sha256(found.get(name, b"")).hexdigest() != change.pristine_sha256:
            raise RevertError(f"{path} does not hold {name} as {RECORD} says.", path=str(path))
    return found


def check_unchanged(
    name: str, record: FolderRecord, shards: Mapping[str, Shard], folder: Path
) -> None:
    """Check that a tensor is as the patch left it, or restored already.

    Raises:
        InputNotFoundError: The weights file does not hold it.
        RevertError: It was changed from outside.
    """
    change = record.tensors[name]
    shard = shards.get(change.file)
    if shard is None or name not in shard.slots:
        raise InputNotFoundError(
            f"{folder / change.file} does not hold {name} as {RECORD} says. Copy the weights from "
            f"the source ({record.source!r}) instead.",
            path=str(folder),
        )
    found = hashlib.sha256(shard.read(shard.slots[name])).hexdigest()
    if found not in (change.patched_sha256, change.pristine_sha256):
        raise RevertError(
            f"{name} in {shard.path} was changed after the patch was applied: {RECORD} says "
            f"{change.patched_sha256}, found {found}. Nothing was written. Copy the weights from "
            f"the source ({record.source!r}) instead.",
            expected=change.patched_sha256,
            found=found,
        )
