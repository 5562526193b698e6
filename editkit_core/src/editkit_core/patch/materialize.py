"""Write a plain checkpoint with patches merged in: nothing in it says that there were any.

Unlike what :func:`editkit_core.patch.checkpoint_edit.write_patched` makes, it cannot be turned
back, and takes any number of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from editkit_core.atomic import new_folder
from editkit_core.errors import InvalidParameterError
from editkit_core.patch.checkpoint import CheckpointSource
from editkit_core.patch.checkpoint_change import changes
from editkit_core.patch.checkpoint_edit import copy_with
from editkit_core.patch.checkpoint_folders import check_out, check_source, files_of
from editkit_core.patch.format import Patch
from editkit_core.patch.module_level import refuse_module_entries
from editkit_core.types import Progress, SilentProgress

_WEIGHTS = frozenset(
    {".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".safetensors"}
)


@attrs.frozen(kw_only=True)
class Materialized:
    """What was written, or would be.

    Attributes:
        folder: The new checkpoint.
        patches: Ids of the merged patches, in canonical order.
        tensors: Stored names of the changed tensors.
        weights: Names of the rewritten files.
        left_out: Files of the source that hold its weights once more, without the patches.
        nbytes: Size of all files written.
        dry_run: Whether nothing was written.
    """

    folder: Path
    patches: tuple[str, ...]
    tensors: tuple[str, ...]
    weights: tuple[str, ...]
    left_out: tuple[str, ...]
    nbytes: int
    dry_run: bool


def materialize(
    source_folder: str | Path,
    patches: Sequence[tuple[Patch, float]],
    out_folder: str | Path,
    *,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Materialized:
    """Write a copy of a checkpoint folder with patches merged in, sharded like the source.

    Every weights file keeps its header, order and offsets. Weights in other formats
    (``pytorch_model.bin`` and the like) are left out, because they would still be the base's.

    Args:
        source_folder: A Hugging Face checkpoint with safetensors weights, whole or sharded.
        patches: What to merge, with the factor on each; the order does not matter.
        out_folder: The folder to make.
        force: Replace an existing checkpoint folder.
        dry_run: Check everything and write nothing.
        progress: Where to report to.

    Raises:
        InvalidParameterError: There are no patches.
        InputNotFoundError: The source is no such folder.
        BaseMismatchError: Its weights are not those a patch was made for.
        ApplyError: The source has a patch applied already, or a weight would overflow.
        ExportError: A patch acts beside the weights, which a checkpoint cannot hold.
        OutputExistsError: The output exists, or is the source.
        WriteFailedError: Writing failed; nothing was left.
    """
    if not patches:
        raise InvalidParameterError("There is nothing to merge: no patches were given.")
    source, out = CheckpointSource(source_folder), Path(out_folder)
    check_source(source.folder)
    check_out(source.folder, out, force)
    refuse_module_entries((patch for patch, _ in patches), "a checkpoint")
    touched = changes(source, patches)
    files = sorted(files_of(source.folder))
    left_out = [file for file in files if _other_weights(file, source)]
    kept = [file for file in files if file not in left_out]
    done = Materialized(
        folder=out,
        patches=tuple(sorted(patch.header.id for patch, _ in patches)),
        tensors=tuple(sorted(touched)),
        weights=tuple(sorted({change.file for change in touched.values()})),
        left_out=tuple(map(str, left_out)),
        nbytes=sum((source.folder / file).stat().st_size for file in kept),
        dry_run=dry_run,
    )
    if not dry_run:
        shown = progress or SilentProgress()
        shown.start(f"Writing {out.name}", done.nbytes)
        try:
            with new_folder(out, replace=force) as folder:
                copy_with(folder, source, kept, touched, shown)
        finally:
            shown.finish()
    return done


def _other_weights(file: Path, source: CheckpointSource) -> bool:
    """Say whether a file holds weights, or their index, that the source is not loaded from."""
    holds = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
    return holds and str(file) not in source.files
