"""``weight.dense/1``: a weight changes by a full matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs
import numpy as np

from editkit_core.patch.kinds.arrays import Float32Array, float_matrix
from editkit_core.types import Site

if TYPE_CHECKING:
    import torch


@attrs.frozen(eq=False, kw_only=True)
class DenseEntry:
    """A full change ΔW.

    Attributes:
        site: Where it acts.
        values: The change (d_out, d_in), float32.
    """

    kind: ClassVar[str] = "weight.dense/1"
    level: ClassVar[Literal["weight"]] = "weight"
    dtypes: ClassVar[Mapping[str, str]] = {"delta": "F32"}

    site: Site
    values: Float32Array = attrs.field(alias="delta", converter=float_matrix)

    @property
    def shape(self) -> tuple[int, int]:
        """Sides (d_out, d_in) of the weight it fits."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def rank(self) -> None:
        """A full matrix has no stated rank."""
        return None

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:  # Any: element type and shape
        """Return the arrays to store, by field."""
        return {"delta": self.values}

    @classmethod
    def from_tensors(cls, site: Site, tensors: Mapping[str, np.ndarray[Any, Any]]) -> DenseEntry:
        """Build the entry from stored arrays."""
        return cls(site=site, delta=tensors["delta"])

    def norm(self) -> float:
        """Return ‖ΔW‖_F, in float64."""
        return float(np.linalg.norm(self.values.astype(np.float64)))

    def factors(self) -> None:
        """A full matrix has no stated factors."""
        return None

    def delta(self, layout: str = "out_in") -> torch.Tensor:
        """Return ΔW (d_out, d_in), or its transpose for ``in_out``; float64, on the CPU."""
        import torch

        values = self.values.T if layout == "in_out" else self.values
        return torch.tensor(values, dtype=torch.float64)

    def side_path(
        self, device: torch.device, dtype: torch.dtype
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return x ↦ x ΔWᵀ for x (..., d_in), computed in ``dtype``."""
        import torch

        values = torch.tensor(self.values, device=device, dtype=dtype)
        return lambda x: x @ values.T  # (..., d_in) -> (..., d_out)
