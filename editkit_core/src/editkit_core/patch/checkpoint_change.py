"""What a patch does to the tensors of a checkpoint on disk."""

from __future__ import annotations

from collections import defaultdict

import attrs
import torch

from editkit_core.errors import ApplyError, BaseMismatchError
from editkit_core.patch import bits
from editkit_core.patch.checkpoint import CheckpointSource
from editkit_core.patch.format import Patch


@attrs.frozen(kw_only=True, eq=False)
class Change:
    """A tensor before and after, and where it is stored.

    Attributes:
        file: Name of the weights file.
        dtype: Container name of the stored element type.
        pristine: The tensor in the source.
        patched: The tensor with the patch.
    """

    file: str
    dtype: str
    pristine: torch.Tensor
    patched: torch.Tensor


def changes(source: CheckpointSource, patch: Patch) -> dict[str, Change]:
    """Return the touched tensors before and after, by stored name.

    Args:
        source: The checkpoint.
        patch: The patch.

    Raises:
        InputNotFoundError: The checkpoint lacks a weight.
        BaseMismatchError: A weight is not the one the patch was made for.
        ApplyError: A weight would overflow.
    """
    base = patch.header.base
    deltas: dict[str, list[torch.Tensor]] = defaultdict(list)
    for entry in patch.entries:
        parameter = entry.site.parameter
        deltas[parameter].append(entry.delta(base.tensors[parameter].layout))
    return dict(_change(source, patch, name, summands) for name, summands in deltas.items())


def _change(
    source: CheckpointSource, patch: Patch, parameter: str, deltas: list[torch.Tensor]
) -> tuple[str, Change]:
    shard, slot = source.locate(parameter)
    _check_base(source, patch, parameter)
    pristine = source.tensor(parameter)
    patched = bits.cast_once(pristine, deltas)
    if not bits.all_finite(patched) and bits.all_finite(pristine):
        raise ApplyError(
            f"With the patch {parameter} would overflow {slot.dtype}. Nothing was written. Apply "
            "it in memory in mode overlay instead.",
            parameter=parameter,
        )
    change = Change(file=shard.path.name, dtype=slot.dtype, pristine=pristine, patched=patched)
    return slot.name, change


def _check_base(source: CheckpointSource, patch: Patch, parameter: str) -> None:
    base = patch.header.base
    stated = base.tensors[parameter]
    found = source.tensor_fingerprint(parameter, stated.layout)
    if (found.shape, found.dtype, found.sha256) == (stated.shape, stated.dtype, stated.sha256):
        return
    raise BaseMismatchError(
        f"The patch {patch.header.id} was made for {base.model!r} and does not fit the weights in "
        f"{source.folder}. {parameter}: the patch needs {stated.dtype} {stated.shape} "
        f"{stated.sha256}, found {found.dtype} {found.shape} {found.sha256}. Give the folder of "
        "the model it was made for, unpatched.",
        patch=patch.header.id,
        made_for=base.model,
        expected={parameter: stated.sha256},
        found={parameter: found.sha256},
    )
