"""The directions in key space that other text hardly uses, and the projection onto them.

With C = U diag(s) Uᵀ, the *null space* is spanned by the eigenvectors of the smallest s. A change
that reads only these leaves ‖Δ K₀‖² ≤ N s_max ‖Δ‖² on the N keys K₀ that C was made of, with s_max
the largest s kept: exactly 0 where these are 0.

Source: Fang et al. 2025, "AlphaEdit: Null-Space Constrained Knowledge Editing", section 3.2.
Differs: The spectrum comes from a symmetric eigendecomposition in float64. Besides the absolute
    threshold, which means something else on every model, it can be cut by the share of the trace.

Legend: d_in: width of a key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import torch
from torch import Tensor

from editkit_core.errors import IllConditionedError
from editkit_core.numerics.covariance import from_statistics
from editkit_core.numerics.moments import KeyMoments

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.types import EditContext, Site

NullRule = Literal["threshold", "energy"]

__all__ = ["NullRule", "NullSpace", "Spectrum", "load_null_spaces", "null_space"]


@attrs.frozen(eq=False, kw_only=True)
class Spectrum:
    """The eigendecomposition of C.

    Attributes:
        values: s, rising, ``(d_in,)`` float64 on the CPU.
        vectors: U by columns, ``(d_in, d_in)`` float64 on the CPU.
        origin: Where C comes from, as JSON values.
    """

    values: Tensor
    vectors: Tensor
    origin: dict[str, Any]  # Any: JSON values

    @classmethod
    def of(cls, moment: Tensor, origin: dict[str, Any] | None = None) -> Spectrum:  # Any: JSON
        """Decompose C ``(d_in, d_in)``, symmetric."""
        values, vectors = torch.linalg.eigh(moment.double())
        return cls(values=values.clamp(min=0.0), vectors=vectors, origin=dict(origin or {}))


@attrs.frozen(eq=False, kw_only=True)
class NullSpace:
    """A projection P onto eigenvectors of C.

    Attributes:
        rank: Number of eigenvectors kept.
        largest: Largest eigenvalue kept.
        share: Their share of the trace of C.
        origin: Where C comes from and what was kept, as JSON values.
    """

    rank: int
    largest: float
    share: float
    origin: dict[str, Any]  # Any: JSON values
    _spectrum: Spectrum = attrs.field(repr=False)

    def project(self, keys: Tensor) -> Tensor:
        """Return P keys for ``keys (d_in,)`` or ``(d_in, n)``, float64 on the CPU."""
        given = keys.detach().to("cpu", torch.float64)
        vectors = self._spectrum.vectors
        kept = 2 * self.rank <= len(vectors)  # the narrower half of the basis is less work
        basis = vectors[:, : self.rank] if kept else vectors[:, self.rank :]
        along = basis @ (basis.T @ given)  # (d_in, r) @ ((r, d_in) @ (d_in, n))
        return along if kept else given - along

    def solve(self, rhs: Tensor) -> Tensor:
        """Return P rhs: P takes the place of C⁻¹ in a solve."""
        return self.project(rhs)

    def gram(self, rows: Tensor) -> Tensor:
        """Return V C Vᵀ for ``rows (n, d_in)``, ``(n, n)`` float64 on the CPU.

        A threshold above 0 leaves some of C within the null space, so it is not 0.
        """
        read = rows.detach().to("cpu", torch.float64) @ self._spectrum.vectors  # (n, d_in)
        return (read * self._spectrum.values) @ read.T


def null_space(spectrum: Spectrum, *, rule: NullRule, limit: float) -> NullSpace:
    """Cut a spectrum.

    Args:
        spectrum: That of C.
        rule: ``threshold`` keeps eigenvalues below ``limit``; ``energy`` keeps the smallest ones
            whose sum is at most the share ``limit`` of the trace.
        limit: See ``rule``.

    Raises:
        IllConditionedError: Nothing is kept; the message says from which limit on something is.
    """
    values, trace = spectrum.values, float(spectrum.values.sum())
    if rule == "threshold":
        rank = int((values < limit).sum())
        least = float(values[0])
    else:
        shares = values.cumsum(dim=0) / trace
        rank = int((shares <= limit).sum())
        least = float(shares[0])
    if rank == 0:
        raise IllConditionedError(
            f"No direction of keys is left to edit in: with {rule} {limit:g} none of {len(values)} "
            f"eigenvalues of the key statistics is small enough. The smallest needs more than "
            f"{least:.3g}; the largest eigenvalue is {float(values[-1]):.3g}. Raise the limit.",
            limit=limit,
            needed=least,
        )
    largest, share = float(values[rank - 1]), float(values[:rank].sum()) / trace
    origin = {
        **spectrum.origin,
        "null_rule": rule,
        "null_limit": limit,
        "null_rank": rank,
        "null_largest": largest,
        "null_share": share,
    }
    return NullSpace(rank=rank, largest=largest, share=share, origin=origin, spectrum=spectrum)


def load_null_spaces(
    model: EditableModel,
    sites: Sequence[Site],
    context: EditContext,
    *,
    rule: NullRule,
    limit: float,
    required: bool,
) -> list[NullSpace]:
    """Return the null space of each site's key statistics.

    Args:
        model: The model.
        sites: The weights whose keys count.
        context: Where statistics are, and where the spectrum is kept between edits.
        rule: How the spectrum is cut, see :func:`null_space`.
        limit: Where.
        required: Whether statistics must exist; otherwise those missing are made from sampled text,
            in one pass.

    Raises:
        StatisticsError: Statistics are missing, damaged, or leave nothing to edit in.
    """
    folder: Path | None = context.statistics_dir
    make: Callable[[KeyMoments], Spectrum] = _spectrum
    spectra = from_statistics(
        model,
        sites,
        make,
        size=lambda made: made.vectors.nbytes,
        what=("spectrum",),
        required=required,
        folder=folder,
        progress=context.progress,
        memo=context.memo,
    )
    return [null_space(spectrum, rule=rule, limit=limit) for spectrum in spectra]


def _spectrum(moments: KeyMoments) -> Spectrum:
    return Spectrum.of(
        moments.moment,
        {
            "kind": "statistics",
            "corpus": moments.key.corpus,
            "digest": moments.key.digest,
            "tokens": moments.count,
        },
    )
