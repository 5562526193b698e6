"""``weight.dense_int8/1``: a weight changes by a full matrix of whole numbers times a step a row.

A row's step is its largest number over 127, rounded down in float32. So each number is off by at
most half a step, and none grows: what bounds the matrix bounds what is stored of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs
import numpy as np
import numpy.typing as npt

from editkit_core.patch.kinds.arrays import (
    MOST_CODE,
    Float32Array,
    Int8Array,
    code_matrix,
    float_matrix,
    float_vector,
)
from editkit_core.types import Site

if TYPE_CHECKING:
    import torch

_LARGEST_STEP = float(np.finfo(np.float32).max) / MOST_CODE


@attrs.frozen(eq=False, kw_only=True)
class DenseInt8Entry:
    """A full change ΔW = diag(steps) codes, a quarter of the size of one in float32.

    d_out, d_in: sides of the weight.

    Attributes:
        site: Where it acts.
        codes: Whole numbers (d_out, d_in) from -127 to 127, int8.
        steps: What one counts in each row (d_out,), float32, 0 or more.
    """

    kind: ClassVar[str] = "weight.dense_int8/1"
    level: ClassVar[Literal["weight"]] = "weight"
    dtypes: ClassVar[Mapping[str, str]] = {"codes": "I8", "steps": "F32"}

    site: Site
    codes: Int8Array = attrs.field(converter=code_matrix)
    steps: Float32Array = attrs.field(converter=float_vector)

    def __attrs_post_init__(self) -> None:
        if len(self.steps) != len(self.codes):
            raise ValueError(
                f"steps must have one number for each of the {len(self.codes)} rows of codes, got "
                f"{len(self.steps)}"
            )
        if not (self.steps.min() >= 0 and self.steps.max() <= _LARGEST_STEP):
            raise ValueError(
                f"steps must be from 0 to {_LARGEST_STEP:g}, got {self.steps.min():g} to "
                f"{self.steps.max():g}"
            )

    @classmethod
    def of(cls, site: Site, delta: Any, *, inward: bool = False) -> DenseInt8Entry:
        """Round a change.

        Args:
            site: Where it acts.
            delta: The change (d_out, d_in), array-like, floats.
            inward: Round towards 0: each number is off by less than a step, and lies between 0 and
                what it was.

        Raises:
            ValueError: It is no matrix of finite numbers.
        """
        values = float_matrix(delta).astype(np.float64)
        most = np.abs(values).max(axis=1)
        steps = (most / MOST_CODE).astype(np.float32)
        above = MOST_CODE * steps.astype(np.float64) > most
        steps = np.where(above, np.nextafter(steps, np.float32(0)), steps)
        counted = values / np.where(steps > 0, steps, np.inf).astype(np.float64)[:, None]
        whole = np.trunc(counted) if inward else np.rint(counted)
        return cls(site=site, codes=whole.clip(-MOST_CODE, MOST_CODE).astype(np.int8), steps=steps)

    @property
    def shape(self) -> tuple[int, int]:
        """Sides (d_out, d_in) of the weight it fits."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def rank(self) -> None:
        """A full matrix has no stated rank."""
        return None

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:  # Any: element type and shape
        """Return the arrays to store, by field."""
        return {"codes": self.codes, "steps": self.steps}

    @classmethod
    def from_tensors(
        cls, site: Site, tensors: Mapping[str, np.ndarray[Any, Any]]
    ) -> DenseInt8Entry:
        """Build the entry from stored arrays."""
        return cls(site=site, codes=tensors["codes"], steps=tensors["steps"])

    def scaled(self, scale: float) -> DenseInt8Entry:
        """Return ``scale`` times the change: the steps are rounded to float32, the codes stay."""
        return attrs.evolve(
            self,
            codes=self.codes if scale >= 0 else -self.codes,
            steps=abs(scale) * self.steps.astype(np.float64),
        )

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return ΔW (d_out, d_in), float64, in which each product is exact."""
        return np.asarray(self.codes * self.steps.astype(np.float64)[:, None])

    def norm(self) -> float:
        """Return ‖ΔW‖_F, in float64."""
        rows = np.einsum("ij,ij->i", self.codes, self.codes, dtype=np.float64)
        return float(np.linalg.norm(self.steps.astype(np.float64) * np.sqrt(rows)))

    def factors(self) -> None:
        """A full matrix has no stated factors."""
        return None

    def delta(self, layout: str = "out_in") -> torch.Tensor:
        """Return ΔW (d_out, d_in), or its transpose for ``in_out``; float64, on the CPU."""
        import torch

        matrix = torch.from_numpy(self.matrix())
        return matrix.T.contiguous() if layout == "in_out" else matrix

    def side_path(
        self, device: torch.device, dtype: torch.dtype
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return x ↦ x ΔWᵀ for x (..., d_in), computed in ``dtype``."""
        import torch

        inner = torch.promote_types(dtype, torch.float32)
        codes = torch.tensor(self.codes, device=device).to(inner)
        steps = torch.tensor(self.steps, device=device).to(inner)
        values = (codes * steps[:, None]).to(dtype)
        return lambda x: x @ values.T  # (..., d_in) -> (..., d_out)
