"""The checkpoint under a stack: which files it has, with which bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from editkit_core.errors import InputNotFoundError, UnsupportedModelError
from editkit_core.stack.store.document import BaseRecord
from editkit_core.types import Progress, SilentProgress

if TYPE_CHECKING:
    from editkit_core.patch.checkpoint import CheckpointSource

_CHUNK_BYTES = 16 * 1024 * 1024


def record_base(
    model: str, folder: Path, *, revision: str | None = None, progress: Progress | None = None
) -> BaseRecord:
    """Describe a checkpoint; every byte of its weights files is read.

    Args:
        model: What to load it by; the path of a local folder is made absolute.
        folder: The folder with its files.
        revision: Hub revision.
        progress: Where to report to, in bytes.

    Raises:
        InputNotFoundError: The folder holds no safetensors weights.
        ApplyError: A patch was merged into it.
        PatchFormatError: A weights file is malformed.
        UnsupportedModelError: Its configuration is of no model transformers knows.
    """
    from transformers import AutoConfig

    from editkit_core.patch.checkpoint import CheckpointSource
    from editkit_core.patch.checkpoint_folders import check_source
    from editkit_core.patch.identity import config_digest

    check_source(folder)
    names = sorted(CheckpointSource(folder).files)
    if not names:
        raise InputNotFoundError(
            f"{folder} holds no safetensors weights, so no stack can stand on it. Save the model "
            "with save_pretrained and give that folder.",
            path=str(folder),
        )
    files = file_digests(folder, names, progress)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"transformers cannot read the configuration in {folder}: {error}. Give the folder of "
            "a language model saved with save_pretrained.",
            name=model,
        ) from error
    return BaseRecord(
        model=os.path.abspath(Path(model).expanduser()) if _is_folder(model) else model,
        revision=revision,
        config_digest=config_digest(config),
        digest=base_digest(files),
        files=files,
    )


def find_base(base: BaseRecord) -> CheckpointSource:
    """Find a stack's checkpoint on this machine.

    Raises:
        ModelNotFoundError: It is not there.
    """
    from editkit_core.patch.checkpoint import CheckpointSource

    if base.folder is not None and (base.folder / "config.json").is_file():
        return CheckpointSource(base.folder)  # without importing transformers
    from editkit_core.host import Host
    from editkit_core.models.loading import find_folder

    packaged = Host().registered("models")
    return CheckpointSource(find_folder(base.model, revision=base.revision, packaged=packaged))


def base_digest(files: Mapping[str, str]) -> str:
    """Return the digest of weights files by their names and digests."""
    lines = [f"{name}\n{sha256}\n" for name, sha256 in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digests(
    folder: Path, names: Iterable[str], progress: Progress | None = None
) -> dict[str, str]:
    """Return the digests of files by name.

    Raises:
        InputNotFoundError: One cannot be read.
    """
    shown, paths = progress or SilentProgress(), [folder / name for name in names]
    try:
        total = sum(path.stat().st_size for path in paths)
        shown.start("Hashing the base", total)
        try:
            return {path.name: _digest(path, shown) for path in paths}
        finally:
            shown.finish()
    except OSError as error:
        raise InputNotFoundError(
            f"Cannot read the weights {error.filename}: {error.strerror or error}. Get the "
            "checkpoint again from its source.",
            path=str(error.filename),
        ) from error


def _digest(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            progress.advance(len(chunk), path.name)
    return digest.hexdigest()


def _is_folder(model: str) -> bool:
    return not model.startswith("editkit:") and Path(model).expanduser().is_dir()
