"""``weight.cols/1``: a weight changes in a few columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs
import numpy as np

from editkit_core.patch.kinds.arrays import Float32Array, Int64Array, float_matrix, whole_vector
from editkit_core.types import Site

if TYPE_CHECKING:
    import torch

_MOST_COLUMNS = 1 << 24  # a file that states more is damaged, and would ask for all memory


@attrs.frozen(eq=False, kw_only=True)
class ColumnsEntry:
    """A change of n columns; the others stay as they are.

    d_out, d_in: sides of the weight; n: number of columns.

    Attributes:
        site: Where it acts.
        columns: Numbers of the columns (n,), rising, int64; column i is what input i is read by.
        values: Change of each of them (d_out, n), float32.
        d_in: How many columns the weight has; stored as int64 (1,).
    """

    kind: ClassVar[str] = "weight.cols/1"
    level: ClassVar[Literal["weight"]] = "weight"
    dtypes: ClassVar[Mapping[str, str]] = {"columns": "I64", "values": "F32", "d_in": "I64"}

    site: Site
    columns: Int64Array = attrs.field(converter=whole_vector)
    values: Float32Array = attrs.field(converter=float_matrix)
    d_in: int = attrs.field(converter=int)

    def __attrs_post_init__(self) -> None:
        if self.values.shape[1] != len(self.columns):
            raise ValueError(
                f"values {self.values.shape} must have one column for each of the "
                f"{len(self.columns)} numbers in columns"
            )
        if (np.diff(self.columns) <= 0).any():
            raise ValueError("columns must rise, each number once")
        if self.d_in > _MOST_COLUMNS:
            raise ValueError(f"d_in must be at most {_MOST_COLUMNS}, got {self.d_in}")
        if self.columns[0] < 0 or self.columns[-1] >= self.d_in:
            raise ValueError(
                f"columns must be from 0 to {self.d_in - 1}, got {self.columns[0]} to "
                f"{self.columns[-1]}"
            )

    @classmethod
    def sum(cls, entries: Sequence[ColumnsEntry]) -> ColumnsEntry:
        """Return the sum of changes of one weight, in float64 until the end."""
        columns = np.unique(np.concatenate([entry.columns for entry in entries]))
        values = np.zeros((entries[0].shape[0], len(columns)))
        for entry in entries:
            values[:, np.searchsorted(columns, entry.columns)] += entry.values
        return attrs.evolve(entries[0], columns=columns, values=values)

    @property
    def shape(self) -> tuple[int, int]:
        """Sides (d_out, d_in) of the weight it fits."""
        return self.values.shape[0], self.d_in

    @property
    def rank(self) -> int:
        """Number of columns n."""
        return len(self.columns)

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:  # Any: element type and shape
        """Return the arrays to store, by field."""
        return {
            "columns": self.columns,
            "values": self.values,
            "d_in": np.array([self.d_in], dtype="<i8"),
        }

    @classmethod
    def from_tensors(cls, site: Site, tensors: Mapping[str, np.ndarray[Any, Any]]) -> ColumnsEntry:
        """Build the entry from stored arrays."""
        width = whole_vector(tensors["d_in"])
        if len(width) != 1:
            raise ValueError(f"d_in must be one number, got {len(width)}")
        return cls(
            site=site, columns=tensors["columns"], values=tensors["values"], d_in=int(width[0])
        )

    def scaled(self, scale: float) -> ColumnsEntry:
        """Return ``scale`` times the change: float64 inside, float32 in the end."""
        return attrs.evolve(self, values=scale * self.values.astype(np.float64))

    def norm(self) -> float:
        """Return ‖ΔW‖_F, in float64."""
        return float(np.linalg.norm(self.values.astype(np.float64)))

    def factors(self) -> tuple[Float32Array, Float32Array]:
        """Return the columns (d_out, n) and a row of zeros with a one for each (n, d_in)."""
        places = np.zeros((self.rank, self.d_in), dtype=np.float32)
        places[np.arange(self.rank), self.columns] = 1.0
        return self.values, places

    def delta(self, layout: str = "out_in") -> torch.Tensor:
        """Return ΔW (d_out, d_in), or its transpose for ``in_out``; float64, on the CPU."""
        import torch

        columns = torch.tensor(self.columns)
        values = torch.tensor(self.values, dtype=torch.float64)
        if layout == "in_out":
            return torch.zeros(self.shape[::-1], dtype=torch.float64).index_copy_(
                0, columns, values.T
            )
        return torch.zeros(self.shape, dtype=torch.float64).index_copy_(1, columns, values)

    def side_path(
        self, device: torch.device, dtype: torch.dtype
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return x ↦ x[columns] valuesᵀ for x (..., d_in), computed in ``dtype``."""
        import torch

        columns = torch.tensor(self.columns, device=device)
        values = torch.tensor(self.values, device=device, dtype=dtype)
        return lambda x: x.index_select(-1, columns) @ values.T  # (..., n) -> (..., d_out)
