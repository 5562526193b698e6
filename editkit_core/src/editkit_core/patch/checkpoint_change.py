"""What patches do to the tensors of a checkpoint on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import attrs
import torch

from editkit_core.errors import ApplyError, BaseMismatchError
from editkit_core.patch import bits
from editkit_core.patch.checkpoint import CheckpointSource
from editkit_core.patch.container import Slot
from editkit_core.patch.format import Patch
from editkit_core.patch.header import TensorFingerprint
from editkit_core.patch.kinds import WeightEntry
from editkit_core.patch.merging import canonical, merged


@attrs.frozen(kw_only=True, eq=False)
class Change:
    """A tensor before and after, and where it is stored.

    Attributes:
        file: Name of the weights file.
        dtype: Container name of the stored element type.
        pristine: The tensor in the source.
        patched: The tensor with the patches.
    """

    file: str
    dtype: str
    pristine: torch.Tensor
    patched: torch.Tensor


@attrs.frozen(kw_only=True, eq=False)
class _Summand:
    """One entry, its patch's factor, and what the patch says about the weight."""

    patch: Patch
    entry: WeightEntry
    scale: float

    @property
    def stated(self) -> TensorFingerprint:
        return self.patch.header.base.tensors[self.entry.site.parameter]

    @property
    def layout(self) -> str:
        return self.stated.layout


def changes(source: CheckpointSource, patches: Sequence[tuple[Patch, float]]) -> dict[str, Change]:
    """Return the touched tensors before and after, by stored name.

    Entries that act beside the weights touch none; the weights of their modules are compared too.

    Args:
        source: The checkpoint.
        patches: The patches with their scales, in any order: the result has the same bits.

    Raises:
        InputNotFoundError: The checkpoint lacks a weight.
        BaseMismatchError: A weight is not the one a patch was made for.
        PatchFormatError: A weights file is malformed, or a weight is stored quantised.
        ApplyError: A weight would overflow, or two patches disagree on how it is stored.
    """
    found: dict[str, list[_Summand]] = defaultdict(list)
    for patch, scale in canonical(patches):
        _check_modules(source, patch)
        for entry in patch.weight_entries:
            stored = source.locate(entry.site.parameter)[1].name
            found[stored].append(_Summand(patch=patch, entry=entry, scale=scale))
    return {stored: _change(source, stored, summands) for stored, summands in found.items()}


def _check_modules(source: CheckpointSource, patch: Patch) -> None:
    """Compare the weights of the modules that a patch acts beside."""
    for name in dict.fromkeys(entry.site.parameter for entry in patch.module_entries):
        slot, sha256 = source.locate(name)[1], bits.sha256(source.tensor(name))
        _check_stated(source, slot, sha256, patch, name)


def _change(source: CheckpointSource, stored: str, summands: Sequence[_Summand]) -> Change:
    shard, slot = source.locate(stored)
    pristine = source.tensor(stored)
    _check_base(source, slot, bits.sha256(pristine), summands)
    layouts = {summand.layout for summand in summands}
    if len(layouts) > 1:
        raise ApplyError(
            f"The patches disagree on whether {stored} is stored out × in or in × out, so one of "
            "them was not made for this model. Verify each with `editkit patch verify --model`.",
            parameter=stored,
        )
    scaled = [(summand.entry, summand.scale) for summand in summands]
    patched = merged(pristine, scaled, layouts.pop(), name=stored)
    return Change(file=shard.path.name, dtype=slot.dtype, pristine=pristine, patched=patched)


def _check_base(
    source: CheckpointSource, slot: Slot, sha256: str, summands: Sequence[_Summand]
) -> None:
    """Compare a stored tensor with what every patch that changes it was made for."""
    for summand in summands:
        _check_stated(source, slot, sha256, summand.patch, summand.entry.site.parameter)


def _check_stated(
    source: CheckpointSource, slot: Slot, sha256: str, patch: Patch, parameter: str
) -> None:
    header, stated = patch.header, patch.header.base.tensors[parameter]
    if (slot.shape, slot.dtype, sha256) != (stated.shape, stated.dtype, stated.sha256):
        raise BaseMismatchError(
            f"The patch {header.id} was made for {header.base.model!r} and does not fit the "
            f"weights in {source.folder}. {parameter}: the patch needs {stated.dtype} "
            f"{stated.shape} {stated.sha256}, found {slot.dtype} {slot.shape} {sha256}. Give the "
            "folder of the model it was made for, unpatched.",
            patch=header.id,
            made_for=header.base.model,
            expected={parameter: stated.sha256},
            found={parameter: sha256},
        )
