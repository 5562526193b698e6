"""How a trained change is stored: as a full matrix, as factors, or as whole numbers.

Legend: d_out, d_in: sides of a weight; r: number of factors.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from editkit_core import Site
from editkit_core.interop.lossy import truncate
from editkit_core.patch.factored import Factored, Float64Array
from editkit_core.patch.format import DenseEntry, DenseInt8Entry, LowRankEntry
from editkit_core.patch.kinds import WeightEntry
from editkit_ft.params import FtParams

EXACT = 1e-6  # relative, in the Frobenius norm; what a float32 matrix is worth as factors
_SMALLER = 8  # the rank must be at most this share of the shorter side to be looked for


@attrs.frozen(eq=False)
class Stored:
    """A change as it goes into the patch.

    Attributes:
        entry: The entry.
        error: ‖stored - trained‖_F / ‖trained‖_F.
        largest: Largest number of the stored change, regardless of sign.
    """

    entry: WeightEntry
    error: float
    largest: float


def stored(site: Site, delta: np.ndarray[Any, Any], params: FtParams) -> Stored:
    """Store a trained change as the parameters say.

    Args:
        site: Where it acts.
        delta: The change (d_out, d_in), float32.
        params: Names the form; a bound is kept whatever the form.
    """
    exact = delta.astype(np.float64)
    made = _entry(site, delta, exact, params)
    held = made.delta().numpy()
    norm = float(np.linalg.norm(exact))
    return Stored(
        entry=made,
        error=float(np.linalg.norm(held - exact)) / norm if norm else 0.0,
        largest=float(np.abs(held).max()),
    )


def _entry(
    site: Site, delta: np.ndarray[Any, Any], exact: Float64Array, params: FtParams
) -> WeightEntry:
    if params.store == "int8":
        # Around the base the bound leaves more room on one side than on the other; 0 is inside.
        inward = params.linf is not None and params.anchor == "base"
        return DenseInt8Entry.of(site, delta, inward=inward)
    if params.store == "low_rank":
        return _low_rank(site, truncate(exact, params.store_rank))
    factors = _exact_factors(exact) if params.store == "auto" and params.linf is None else None
    return DenseEntry(site=site, delta=delta) if factors is None else _low_rank(site, factors)


def _low_rank(site: Site, factors: Factored) -> LowRankEntry:
    return LowRankEntry(site=site, u=factors.u, v=factors.v)


def _exact_factors(delta: Float64Array) -> Factored | None:
    """Return factors of the least rank that hold a change to ``EXACT``, None if it is too high."""
    most = max(min(delta.shape) // _SMALLER, 1)
    allowed = 0.5 * EXACT * float(np.linalg.norm(delta))  # rounding the factors takes the rest
    if _surely_above(delta, most, allowed):
        return None
    factors = truncate(delta, most)
    sigma = np.linalg.norm(factors.u, axis=0) ** 2  # each side has half of a singular value
    missing = np.sqrt(np.maximum((delta**2).sum() - np.cumsum(sigma**2), 0.0))
    if missing[-1] > allowed:
        return None
    rank = int((missing > allowed).sum()) + 1
    return Factored(factors.u[:, :rank], factors.v[:rank])


def _surely_above(delta: Float64Array, rank: int, allowed: float) -> bool:
    """Say whether a part of the matrix shows already that no factors of a rank come close enough.

    The singular values of some rows and columns of a matrix are never above its own, so neither is
    what is left of them after the first ``rank``.
    """
    rows, columns = (
        np.unique(np.linspace(0, side - 1, min(2 * rank, side)).astype(int)) for side in delta.shape
    )
    sigma = np.linalg.svd(delta[np.ix_(rows, columns)], compute_uv=False)
    return bool(np.linalg.norm(sigma[rank:]) > allowed)
