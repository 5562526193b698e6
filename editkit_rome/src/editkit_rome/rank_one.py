"""The rank-one change of a weight that gives one key a new value.

With C the second moment of keys, the change of least tr(Δ C Δᵀ) with (W + Δ) k = v* is::

    Δ = (v* - W k) cᵀ / (cᵀ k),    c = C⁻¹ k

Any multiple of c gives the same Δ.

Source: Meng et al. 2022, equation 2; Gupta et al. 2024 for taking one key throughout.
Differs: Solved by Cholesky in float64, where the reference inverts in float32. The first factor is
    computed after the second has been rounded to float32, so the constraint holds to rounding.

Legend: d_out, d_in: sides of W.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from editkit_core.errors import DegenerateKeyError, NonFiniteEditError
from editkit_core.numerics.covariance import Covariance

# Below this cosine a float32 key has too few digits left along the direction.
MIN_COSINE = 1e-6


@attrs.frozen(eq=False, kw_only=True)
class RankOne:
    """Δ = u v.

    Attributes:
        u: ``(d_out, 1)`` float32 on the CPU.
        v: ``(1, d_in)`` float32 on the CPU, of norm 1.
        cosine: Cosine between the constrained key and v.
    """

    u: Tensor
    v: Tensor
    cosine: float

    @property
    def norm(self) -> float:
        """‖Δ‖ in Frobenius norm."""
        return float(self.u.double().norm() * self.v.double().norm())

    def on(self, key: Tensor) -> Tensor:
        """Return Δ k for ``key (d_in,)``, ``(d_out,)`` float64."""
        return self.u.double()[:, 0] * (self.v.double()[0] @ key.double())


@attrs.frozen(eq=False, kw_only=True)
class Direction:
    """The direction in key space that a change reads.

    Attributes:
        v: C⁻¹ k scaled to norm 1, ``(d_in,)`` float32 on the CPU.
        along: v · k of the constrained key.
        cosine: Cosine between the constrained key and v.
    """

    v: Tensor
    along: float
    cosine: float

    @property
    def reading(self) -> Tensor:
        """The vector r = v / (v · k), ``(d_in,)`` float64: r · k is 1 for the constrained key."""
        return self.v.double() / self.along

    def carrying(self, missing: Tensor) -> RankOne:
        """Return the Δ that gives the constrained key ``missing (d_out,)`` more.

        Raises:
            NonFiniteEditError: ``missing`` holds NaN or infinity.
        """
        if not bool(torch.isfinite(missing).all()):
            raise NonFiniteEditError("The value is not finite. Load the model in float32.")
        u = (missing.double() / self.along).float()
        return RankOne(u=u[:, None], v=self.v[None, :], cosine=self.cosine)


def direction(
    *, key: Tensor, covariance: Covariance, constrained: Tensor | None = None
) -> Direction:
    """Return the direction C⁻¹ ``key`` as the constrained key sees it.

    Args:
        key: ``(d_in,)``, the key that the direction is made of.
        covariance: C.
        constrained: ``(d_in,)``, the key that gets the value; None means ``key``. The first ROME
            code takes the bare prompt's here, and an averaged one for ``key``.

    Raises:
        DegenerateKeyError: The constrained key is zero or nearly orthogonal to C⁻¹ ``key``.
        NonFiniteEditError: NaN or infinity appeared.
    """
    target = (key if constrained is None else constrained).double()
    solved = covariance.solve(key)  # (d_in,) float64
    length = solved.norm()
    v = torch.where(length > 0, solved / length, solved).float()
    along = float(v.double() @ target)
    norm = float(target.norm())
    if not (torch.isfinite(v).all() and norm < float("inf")):
        raise NonFiniteEditError(
            "The key or the solve is not finite. Load the model in float32, or make the key "
            "statistics from more tokens."
        )
    cosine = along / norm if norm else 0.0
    if abs(cosine) < MIN_COSINE:
        raise DegenerateKeyError(
            f"The key has cosine {cosine:.1e} with the direction it is solved to, so the change "
            "would be enormous. Use variant=r-rome, another layer, or better key statistics.",
            cosine=cosine,
        )
    return Direction(v=v, along=along, cosine=cosine)
