"""Entry kinds: what a patch can change, and how. One file a kind.

An entry owns its tensors, its checks and its arithmetic, so a patch applies where the method that
made it is not installed. Kinds from plugins come through ``editkit_register_patch_kinds``.

A kind of level ``weight`` is a change ΔW, and all of one weight add up. One of level ``module``
acts on what a module gives out, through hooks; there the order of the patches may matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from editkit_core.errors import UnknownPatchKindError
from editkit_core.patch.kinds.arrays import Float32Array
from editkit_core.patch.kinds.codebook import CodebookEntry
from editkit_core.patch.kinds.cols import ColumnsEntry
from editkit_core.patch.kinds.dense import DenseEntry
from editkit_core.patch.kinds.dense_int8 import DenseInt8Entry
from editkit_core.patch.kinds.low_rank import LowRankEntry
from editkit_core.types import Site

if TYPE_CHECKING:
    import numpy as np
    import torch

    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.header import MethodRef


class WeightEntry(Protocol):
    """A change of one weight matrix, seen as (d_out, d_in)."""

    kind: ClassVar[str]
    level: ClassVar[Literal["weight"]]
    dtypes: ClassVar[Mapping[str, str]]  # container dtype of each tensor, by field

    @property
    def site(self) -> Site:
        """Where it acts."""

    @property
    def shape(self) -> tuple[int, int]:
        """Sides (d_out, d_in) of the weight it fits."""

    @property
    def rank(self) -> int | None:
        """Number of factors, or None for a full matrix."""

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:  # Any: element type and shape
        """Return the arrays to store, by field."""

    @classmethod
    def from_tensors(cls, site: Site, tensors: Mapping[str, np.ndarray[Any, Any]]) -> WeightEntry:
        """Build the entry from stored arrays; ValueError says what does not fit."""

    def norm(self) -> float:
        """Return the Frobenius norm of the change."""

    def factors(self) -> tuple[Float32Array, Float32Array] | None:
        """Return U (d_out, r) and V (r, d_in) with ΔW = U V, or None when it is no such product."""

    def delta(self, layout: str = "out_in") -> torch.Tensor:
        """Return the change (d_out, d_in), or (d_in, d_out) for ``in_out``; float64, on the CPU."""

    def side_path(
        self, device: torch.device, dtype: torch.dtype
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the map from inputs (..., d_in) to added outputs (..., d_out)."""


class Realised(Protocol):
    """Module entries that act on a model."""

    def remove(self) -> None:
        """Take them off; the model is as before."""


class ModuleEntry(Protocol):
    """A change of what one module gives out, made by hooks; the weights stay as they are."""

    kind: ClassVar[str]
    level: ClassVar[Literal["module"]]
    dtypes: ClassVar[Mapping[str, str]]  # container dtype of each tensor, by field

    @property
    def site(self) -> Site:
        """Where it acts; the parameter is the module's weight, by which the base is told."""

    @property
    def shape(self) -> tuple[int, int]:
        """Sides (d_out, d_in) of the module it fits."""

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:  # Any: element type and shape
        """Return the arrays to store, by field."""

    @classmethod
    def from_tensors(cls, site: Site, tensors: Mapping[str, np.ndarray[Any, Any]]) -> ModuleEntry:
        """Build the entry from stored arrays; ValueError says what does not fit."""

    def norm(self) -> float:
        """Return one number for its size."""

    def facts(self) -> dict[str, Any]:  # Any: JSON values
        """Return what there is to say about it, as JSON values."""

    @classmethod
    def realise(cls, model: EditableModel, module: str, entries: Sequence[Any]) -> Realised:
        """Put all active entries of this kind on a module as one.

        Args:
            model: The model.
            module: The module.
            entries: Entries of this kind, in the order in which their patches were applied.

        Raises:
            ApplyError: They cannot act together, or not there; nothing is left on the model.
        """
        # Any: Sequence[Self], which no implementation with its own class could be told to fit


Entry = WeightEntry | ModuleEntry
Kind = type[WeightEntry] | type[ModuleEntry]
Kinds = Mapping[str, Kind]
BUILTIN_KINDS: Kinds = MappingProxyType(
    {
        LowRankEntry.kind: LowRankEntry,
        DenseEntry.kind: DenseEntry,
        DenseInt8Entry.kind: DenseInt8Entry,
        ColumnsEntry.kind: ColumnsEntry,
        CodebookEntry.kind: CodebookEntry,
    }
)


def find_kind(kinds: Kinds, name: str, method: MethodRef) -> Kind:
    """Return the kind called ``name``.

    Raises:
        UnknownPatchKindError: Nothing installed has it; the message names what to install.
    """
    if name in kinds:
        return kinds[name]
    raise UnknownPatchKindError(
        f"The patch holds an entry of the kind {name!r:.80}, which nothing installed here can "
        f"apply. It was made by {method.dist!r:.80} {method.version:.40}: install that "
        f"distribution (pip install {method.dist:.80}). Known kinds: {', '.join(sorted(kinds))}.",
        kind=name,
        dist=method.dist,
    )
