"""Sums of products U V, added, measured and compressed without ever forming a full matrix.

Legend: d_out, d_in: sides of the weight; r: number of factors. All arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import numpy.typing as npt

from editkit_core.patch.kinds.arrays import Float32Array

Float64Array = npt.NDArray[np.float64]


@attrs.frozen(eq=False)
class Factored:
    """A change ΔW = U V.

    Attributes:
        u: Left factors (d_out, r), float64.
        v: Right factors (r, d_in), float64.
    """

    u: Float64Array
    v: Float64Array

    @classmethod
    def of(cls, factors: tuple[Float32Array, Float32Array], scale: float = 1.0) -> Factored:
        """Return ``scale`` times an entry's product."""
        u, v = factors
        return cls(scale * u.astype(np.float64), v.astype(np.float64))

    @classmethod
    def sum(cls, parts: Sequence[Factored]) -> Factored:
        """Return the sum of products of one weight: their factors side by side."""
        return cls(
            np.concatenate([part.u for part in parts], axis=1),
            np.concatenate([part.v for part in parts], axis=0),
        )

    @property
    def rank(self) -> int:
        """Number of factors r."""
        return int(self.u.shape[1])

    def minus(self, other: Factored) -> Factored:
        """Return the difference of two products of one weight."""
        return Factored.sum([self, Factored(-other.u, other.v)])

    def dense(self) -> Float64Array:
        """Return U V (d_out, d_in), where a full matrix is needed after all."""
        return np.asarray(self.u @ self.v, dtype=np.float64)

    def inner(self, other: Factored) -> float:
        """Return ⟨U V, U' V'⟩_F = Σ (UᵀU') ∘ (V V'ᵀ)."""
        return float(((self.u.T @ other.u) * (self.v @ other.v.T)).sum())  # (r, r')

    def norm(self) -> float:
        """Return ‖U V‖_F through triangular factors, so that a small difference is seen.

        The Gram form of :meth:`inner` loses half the digits where terms cancel.
        """
        left, right = _triangle(self.u), _triangle(self.v.T)
        return float(np.linalg.norm(left @ right.T))

    def compressed(self) -> Factored:
        """Return the same product with as few factors as its numerical rank.

        QR of both sides, then the singular values of the small middle; those under
        max(d_out, d_in) · ε · σ₁ are rounding. The two sides share each singular value evenly.
        """
        left, middle_left = np.linalg.qr(self.u)  # (d_out, m), (m, r)
        right, middle_right = np.linalg.qr(self.v.T)  # (d_in, n), (n, r)
        p, sigma, q = np.linalg.svd(middle_left @ middle_right.T, full_matrices=False)
        kept = max(int((sigma > _floor(self, sigma)).sum()), 1)
        root = np.sqrt(sigma[:kept])
        return Factored(left @ (p[:, :kept] * root), (root[:, None] * q[:kept]) @ right.T)

    def singular_values(self) -> Float64Array:
        """Return the singular values of U V, largest first, at most min(r, d_out, d_in)."""
        middle = _triangle(self.u) @ _triangle(self.v.T).T
        return np.asarray(np.linalg.svd(middle, compute_uv=False), dtype=np.float64)

    def numerical_rank(self) -> int:
        """Return how many singular values are more than rounding."""
        sigma = self.singular_values()
        return int((sigma > _floor(self, sigma)).sum())


def _triangle(matrix: Float64Array) -> Float64Array:
    """Return R of the QR decomposition of a tall matrix."""
    return np.asarray(np.linalg.qr(matrix, mode="r"), dtype=np.float64)


def _floor(product: Factored, sigma: Float64Array) -> float:
    size = max(product.u.shape[0], product.v.shape[1])
    return float(size * np.finfo(np.float64).eps * sigma.max(initial=0.0))
