"""``weight.low_rank/1``: a weight changes by U V."""

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
class LowRankEntry:
    """A change of rank at most r: ΔW = U V.

    d_out, d_in: sides of the weight; r: number of factors.

    Attributes:
        site: Where it acts.
        u: Left factors (d_out, r), float32.
        v: Right factors (r, d_in), float32.
    """

    kind: ClassVar[str] = "weight.low_rank/1"
    level: ClassVar[Literal["weight"]] = "weight"
    dtypes: ClassVar[Mapping[str, str]] = {"u": "F32", "v": "F32"}

    site: Site
    u: Float32Array = attrs.field(converter=float_matrix)
    v: Float32Array = attrs.field(converter=float_matrix)

    def __attrs_post_init__(self) -> None:
        if self.u.shape[1] != self.v.shape[0]:
            raise ValueError(
                f"u {self.u.shape} and v {self.v.shape} must share one rank: u is (d_out, r), v is "
                "(r, d_in)"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Sides (d_out, d_in) of the weight it fits."""
        return self.u.shape[0], self.v.shape[1]

    @property
    def rank(self) -> int:
        """Number of factors r."""
        return int(self.u.shape[1])

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:  # Any: element type and shape
        """Return the arrays to store, by field."""
        return {"u": self.u, "v": self.v}

    @classmethod
    def from_tensors(cls, site: Site, tensors: Mapping[str, np.ndarray[Any, Any]]) -> LowRankEntry:
        """Build the entry from stored arrays."""
        return cls(site=site, u=tensors["u"], v=tensors["v"])

    def norm(self) -> float:
        """Return ‖U V‖_F = sqrt(Σ (UᵀU) ∘ (V Vᵀ)), in float64."""
        u, v = self.u.astype(np.float64), self.v.astype(np.float64)
        gram = (u.T @ u) * (v @ v.T)  # (r, r)
        return float(np.sqrt(max(float(gram.sum()), 0.0)))

    def factors(self) -> tuple[Float32Array, Float32Array]:
        """Return U (d_out, r) and V (r, d_in)."""
        return self.u, self.v

    def delta(self, layout: str = "out_in") -> torch.Tensor:
        """Return U V (d_out, d_in), or its transpose for ``in_out``; float64, on the CPU."""
        import torch

        u, v = torch.tensor(self.u, dtype=torch.float64), torch.tensor(self.v, dtype=torch.float64)
        if layout == "in_out":
            return v.T @ u.T  # (d_in, r) @ (r, d_out)
        return u @ v  # (d_out, r) @ (r, d_in)

    def side_path(
        self, device: torch.device, dtype: torch.dtype
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return x ↦ (x Vᵀ) Uᵀ for x (..., d_in), computed in ``dtype``."""
        import torch

        u = torch.tensor(self.u, device=device, dtype=dtype)
        v = torch.tensor(self.v, device=device, dtype=dtype)
        return lambda x: (x @ v.T) @ u.T  # (..., d_in) -> (..., r) -> (..., d_out)
