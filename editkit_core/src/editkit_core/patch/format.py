"""A patch in memory: header, entries, evidence, canary.

``Patch.from_parts`` makes one and computes its digests; ``save`` and ``load`` are in
:mod:`editkit_core.patch.io`. Nothing here imports torch.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from editkit_core.errors import PatchFormatError, PatchShapeError
from editkit_core.patch import digests
from editkit_core.patch.evidence import Canary, Evidence
from editkit_core.patch.header import (
    BaseFingerprint,
    EntryHeader,
    JsonValue,
    MethodRef,
    PatchHeader,
    TensorFingerprint,
)
from editkit_core.patch.header_codec import seal
from editkit_core.patch.kinds import Entry, Kinds, ModuleEntry, WeightEntry
from editkit_core.patch.kinds.codebook import Codebook, CodebookEntry
from editkit_core.patch.kinds.cols import ColumnsEntry
from editkit_core.patch.kinds.dense import DenseEntry
from editkit_core.patch.kinds.dense_int8 import DenseInt8Entry
from editkit_core.patch.kinds.low_rank import LowRankEntry
from editkit_core.types import EditRequest

if TYPE_CHECKING:
    from editkit_core.patch.describe import Description

__all__ = [
    "BaseFingerprint",
    "Canary",
    "Codebook",
    "CodebookEntry",
    "ColumnsEntry",
    "DenseEntry",
    "DenseInt8Entry",
    "Evidence",
    "LowRankEntry",
    "MethodRef",
    "Patch",
    "PatchHeader",
    "TensorFingerprint",
    "installed_versions",
]

_RECORDED = ("editkit-core", "torch", "transformers", "tokenizers", "numpy")


@attrs.frozen(eq=False, kw_only=True)
class Patch:
    """A change of a model, with where it comes from and what it fits.

    Attributes:
        header: Everything but the numbers.
        entries: The changes; those of one weight add up, those of modules act beside the weights.
        evidence: Edit keys, by module.
        canary: What the patched model must say, if recorded.
    """

    header: PatchHeader
    entries: tuple[Entry, ...]
    evidence: tuple[Evidence, ...] = ()
    canary: Canary | None = None

    @classmethod
    def from_parts(
        cls,
        *,
        entries: Sequence[Entry],
        method: MethodRef,
        base: BaseFingerprint,
        edits: Sequence[EditRequest] = (),
        params: Mapping[str, JsonValue] | None = None,
        seed: int = 0,
        contexts: Sequence[str] = (),
        evidence: Evidence | Sequence[Evidence] | None = None,
        canary: Canary | None = None,
        name: str = "",
        metrics: Mapping[str, JsonValue] | None = None,
        environment: Mapping[str, JsonValue] | None = None,
        computed_on: str | None = None,
        requires: Sequence[str] = (),
        replaces: Sequence[str] = (),
        conflicts: Sequence[str] = (),
        licence: str | None = None,
        created: str | None = None,
    ) -> Patch:
        """Build a patch and compute its id and digests.

        Args:
            entries: The changes, at least one.
            method: Who computed it.
            base: What it fits; must fingerprint every weight that an entry changes.
            edits: The requests.
            params: The method's parameters as plain JSON values.
            seed: Seed of every random choice.
            contexts: Context prefixes used.
            evidence: Edit keys: None, one block, or one a module.
            canary: Log-probabilities to check by.
            name: A name for people.
            metrics: Scores measured now, as plain JSON values.
            environment: Versions; None records those installed here.
            computed_on: ``stack_digest`` of the patches applied meanwhile, None for the base.
            requires: Ids of patches that must be there too.
            replaces: Ids of patches that this one supersedes.
            conflicts: Ids of patches that must not be there.
            licence: SPDX name.
            created: UTC time, ISO 8601; None means now.

        Raises:
            PatchFormatError: A value cannot be stored.
            PatchShapeError: An entry does not fit the fingerprinted weight.
        """
        blocks = _blocks(evidence)
        if not entries:
            raise PatchFormatError("A patch needs at least one entry.", where="entries")
        tensors = _tensors(entries, blocks, canary)
        header = PatchHeader(
            id="", content_digest="", checksum="", name=name, method=method, base=base,
            entries=tuple(EntryHeader(kind=entry.kind, site=entry.site) for entry in entries),
            evidence=tuple(block.module for block in blocks),
            tensors={key: digests.tensor_digest(key, value) for key, value in tensors.items()},
            edits=tuple(edits), params=dict(params or {}), seed=seed, contexts=tuple(contexts),
            environment=dict(installed_versions() if environment is None else environment),
            metrics=dict(metrics or {}), computed_on=computed_on, requires=tuple(requires),
            replaces=tuple(replaces), conflicts=tuple(conflicts), licence=licence,
            created=created or _now(),
        )  # fmt: skip
        return cls(header=seal(header), entries=tuple(entries), evidence=blocks, canary=canary)

    def __attrs_post_init__(self) -> None:
        for entry in self.entries:
            check_fits(entry, self.header.base)

    @property
    def id(self) -> str:
        """Short name of the content."""
        return self.header.id

    @property
    def weight_entries(self) -> tuple[WeightEntry, ...]:
        """The entries that change a weight."""
        return tuple(entry for entry in self.entries if entry.level == "weight")

    @property
    def module_entries(self) -> tuple[ModuleEntry, ...]:
        """The entries that act beside the weights, on what a module gives out."""
        return tuple(entry for entry in self.entries if entry.level == "module")

    @property
    def nbytes(self) -> int:
        """Size of the numbers in bytes, without the header."""
        return sum(array.nbytes for array in self.tensors().values())

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:  # Any: element type and shape
        """Return every array, by its name in the file."""
        return _tensors(self.entries, self.evidence, self.canary)

    def summary(self) -> Description:
        """Return what there is to say about the patch, as JSON values."""
        from editkit_core.patch.describe import describe

        return describe(self)

    def with_metrics(self, metrics: Mapping[str, JsonValue]) -> Patch:
        """Return the patch with scores recorded; the id changes with them.

        Raises:
            PatchFormatError: A score cannot be stored.
        """
        return attrs.evolve(self, header=seal(attrs.evolve(self.header, metrics=dict(metrics))))

    def save(self, path: str | Path, *, force: bool = False) -> int:
        """Write the patch file atomically; see :func:`editkit_core.patch.io.save`."""
        from editkit_core.patch.io import save

        return save(self, Path(path), force=force)

    @classmethod
    def load(cls, path: str | Path, *, kinds: Kinds | None = None) -> Patch:
        """Read a patch file strictly; see :func:`editkit_core.patch.io.load`."""
        from editkit_core.patch.io import load

        return load(Path(path), kinds=kinds)


def check_fits(entry: Entry, base: BaseFingerprint) -> None:
    """Check an entry's sides against the fingerprint of the weight it changes.

    Raises:
        PatchShapeError: They differ, or the weight is not fingerprinted.
    """
    site = entry.site
    known = base.tensors.get(site.parameter)
    if known is None:
        raise PatchShapeError(
            f"The patch changes {site.parameter} but its base has no fingerprint of it. Make the "
            "patch with base_fingerprint over every site's parameter.",
            parameter=site.parameter,
        )
    expected = known.shape if known.layout == "out_in" else known.shape[::-1]
    if expected != entry.shape:
        raise PatchShapeError(
            f"The change of {site.parameter} is {entry.shape} (out, in), the weight is {expected}. "
            "Store factors as out × in; the applier transposes for Conv1D.",
            parameter=site.parameter,
            expected=expected,
            found=entry.shape,
        )


def installed_versions() -> dict[str, str]:
    """Return the versions worth recording in a patch, without importing anything heavy."""
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _blocks(evidence: Evidence | Sequence[Evidence] | None) -> tuple[Evidence, ...]:
    if evidence is None:
        return ()
    return (evidence,) if isinstance(evidence, Evidence) else tuple(evidence)


def _tensors(
    entries: Iterable[Entry], evidence: Iterable[Evidence], canary: Canary | None
) -> dict[str, np.ndarray[Any, Any]]:  # Any: element type and shape
    named = {f"{i}.{k}": array for i, e in enumerate(entries) for k, array in e.tensors().items()}
    for i, block in enumerate(evidence):
        named |= {f"evidence.{i}.{k}": array for k, array in block.tensors().items()}
    if canary is not None:
        named |= {f"canary.{k}": array for k, array in canary.tensors().items()}
    return named
