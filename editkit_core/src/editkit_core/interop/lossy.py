"""Truncation of a full matrix to a rank, and what it costs.

Legend: d_out, d_in: sides of a weight.
"""

from __future__ import annotations

import attrs
import numpy as np

from editkit_core.patch.factored import Factored, Float64Array


@attrs.frozen(kw_only=True)
class Loss:
    """What a truncated change keeps of the one that was asked for.

    Attributes:
        parameter: The weight.
        rank: The rank that its full matrix was truncated to.
        cosine: ⟨asked, made⟩ / (‖asked‖ ‖made‖); 1 when nothing is lost.
        relative_error: ‖asked - made‖ / ‖asked‖.
    """

    parameter: str
    rank: int
    cosine: float
    relative_error: float

    @classmethod
    def between(cls, asked: Float64Array, made: Float64Array, *, parameter: str, rank: int) -> Loss:
        """Compare two changes (d_out, d_in) in float64."""
        norms = float(np.linalg.norm(asked)), float(np.linalg.norm(made))
        if not all(norms):
            same = norms[0] == norms[1]
            return cls(parameter=parameter, rank=rank, cosine=float(same), relative_error=1 - same)
        return cls(
            parameter=parameter,
            rank=rank,
            cosine=min(1.0, float(np.vdot(asked, made)) / (norms[0] * norms[1])),
            relative_error=float(np.linalg.norm(asked - made)) / norms[0],
        )


def truncate(delta: Float64Array, rank: int) -> Factored:
    """Return the best approximation of a rank, the truncated singular value decomposition.

    The singular vectors of the shorter side are the eigenvectors of its Gram matrix; projecting on
    the first of them is the best approximation (Eckart and Young, 1936). Both factors get half of
    each singular value, so that neither is out of proportion.

    Args:
        delta: The change (d_out, d_in), float64.
        rank: How many factors to keep, at most the shorter side.
    """
    if delta.shape[0] > delta.shape[1]:
        turned = truncate(delta.T, rank)
        return Factored(turned.v.T, turned.u.T)
    _, vectors = np.linalg.eigh(delta @ delta.T)  # (d_out, d_in) @ (d_in, d_out), ascending
    left = vectors[:, ::-1][:, :rank]  # (d_out, rank)
    right = left.T @ delta  # (rank, d_out) @ (d_out, d_in)
    sigma = np.linalg.norm(right, axis=1)
    root = np.sqrt(np.where(sigma > 0, sigma, 1.0))
    return Factored(left * root, right / root[:, None])
