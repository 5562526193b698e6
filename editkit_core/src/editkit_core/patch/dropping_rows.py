"""Take edits out of a batch's change, as if it had been solved without them.

A batch's change of a weight is Δ = U V, one column of U and one row of V an edit::

    V = S⁻¹ Kᵀ C⁻¹          S = λ I + Kᵀ C⁻¹ K          T = I - V K = λ S⁻¹

So T is known up to nothing but a factor without C and λ, and taking the rows and columns D out of S
gives, with k for those that stay::

    V' = V_k - T_kD T_DD⁻¹ V_D          U' = U_k

The same holds where S has rows for further keys whose columns of U are zero and were cut, as
AlphaEdit's for earlier edits: T is then that block of λ S⁻¹, and V' has no other terms.

With λ = 0 every value is met, V K = I, and T is nothing but rounding. Rounding of the stored
numbers decides how exact V' is, so its effect is estimated.

Source: the inverse of a block matrix.

Legend: d_out, d_in: sides of the weight; n: edits; k, g: edits that stay and that go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
FloatArray = npt.NDArray[Any]  # Any: float32 as stored, or float64

FLOAT32_ROUNDING = 2.0**-24
FLOAT16_ROUNDING = 2.0**-11
_SURE = 0.1  # of T_DD: beyond it the estimate of the error is none
_ASYMMETRY = 1e-3  # of a correlation: more than a solve in float64 leaves
_OUTLIER = 8.0  # of an estimated rounding error, over all pairs of a batch


@attrs.frozen(eq=False, kw_only=True)
class Rest:
    """The rows that stay.

    Attributes:
        v: V', ``(k, d_in)`` float64.
        effect: ‖Δ' K_k - Δ K_k‖ / ‖Δ K_k‖: how much what the change gives at the other edits' keys
            changes.
        error: Estimated ‖error of Δ'‖ / ‖Δ'‖ from the rounding of what is stored; infinite where
            it cannot be told. Zero where rows were left out.
    """

    v: Float64Array
    effect: float
    error: float = 0.0


def is_a_solve(v: FloatArray, keys: FloatArray, *, rounding: float = FLOAT32_ROUNDING) -> bool:
    """Whether rows can be those of a batch's solve: V K is symmetric and between 0 and 1.

    Args:
        v: V, ``(n, d_in)``.
        keys: Kᵀ, ``(n, d_in)``.
        rounding: Relative size of the keys' rounding errors.
    """
    read, errors = _read(v, keys, rounding)
    own = np.diag(read)
    sizes = np.sqrt(np.clip(own, 0, None))
    room = _OUTLIER * (errors + errors.T) + _ASYMMETRY * np.outer(sizes, sizes)
    symmetric = bool((np.abs(read - read.T) <= room).all())
    return symmetric and bool(((own >= -np.diag(room)) & (own <= 1 + np.diag(room))).all())


def solved_without(
    u: FloatArray,
    v: FloatArray,
    keys: FloatArray,
    gone: Sequence[int],
    *,
    rounding: float = FLOAT32_ROUNDING,
) -> Rest:
    """Return the rows of the batch solved without some edits, with the residuals of the others.

    Args:
        u: U, ``(d_out, n)``: the residuals.
        v: V, ``(n, d_in)``, of a solve.
        keys: Kᵀ, ``(n, d_in)``: the keys it was solved with.
        gone: Places of the edits that go.
        rounding: Relative size of the keys' rounding errors.
    """
    kept = _others(len(v), gone)
    read, errors = _read(v, keys, rounding)
    left = np.eye(len(read)) - read  # T
    block, beside = left[np.ix_(gone, gone)], left[np.ix_(kept, gone)]
    try:
        inverse = np.linalg.inv(block)
    except np.linalg.LinAlgError:
        inverse = np.full_like(block, np.inf)
    exact = np.asarray(v, np.float64)
    if not np.isfinite(inverse).all():
        return Rest(v=exact[kept], effect=np.inf, error=np.inf)
    share = beside @ inverse  # (k, g) @ (g, g)
    taken = share @ exact[gone]  # (k, g) @ (g, d_in)
    rows = exact[kept] - taken
    unsure = np.abs(inverse) @ errors[np.ix_(gone, gone)]  # relative, of T_DD
    if float(np.linalg.norm(unsure)) > _SURE:
        return Rest(v=rows, effect=_effect(u, v, keys, kept, rows), error=np.inf)
    around = errors[np.ix_(kept, gone)] + np.abs(share) @ errors[np.ix_(gone, gone)]
    wrong = around @ np.abs(inverse)  # of `share`, (k, g)
    columns = np.linalg.norm(np.asarray(u, np.float64)[:, kept], axis=0)
    lengths = np.linalg.norm(exact[gone], axis=1)
    size = _norm(u, kept, rows)
    error = float(np.linalg.norm(columns[:, None] * wrong * lengths)) / size if size else 0.0
    error += FLOAT32_ROUNDING * (1 + (_norm(u, kept, taken) / size if size else 0.0))
    return Rest(v=rows, effect=_effect(u, v, keys, kept, rows), error=error)


def left_out(u: FloatArray, v: FloatArray, keys: FloatArray, gone: Sequence[int]) -> Rest:
    """Return the rows of the other edits as they are.

    That is the batch solved with nothing missing at the keys of those that go: they still keep
    the others' change away from their keys. The arguments are those of :func:`solved_without`.
    """
    kept = _others(len(v), gone)
    rows = np.asarray(v, np.float64)[kept]
    return Rest(v=rows, effect=_effect(u, v, keys, kept, rows))


def rounding_of(keys: FloatArray, *, exact: bool) -> float:
    """Return the relative size of keys' rounding errors; inexact ones are float16 numbers."""
    if exact:
        return FLOAT32_ROUNDING
    with np.errstate(over="ignore"):
        short = np.asarray(keys).astype(np.float16)
    return FLOAT16_ROUNDING if np.array_equal(short, keys) else FLOAT32_ROUNDING


def _others(n: int, gone: Sequence[int]) -> list[int]:
    return [i for i in range(n) if i not in set(gone)]


def _read(v: FloatArray, keys: FloatArray, rounding: float) -> tuple[Float64Array, Float64Array]:
    """Return V K and the size of its rounding errors, both ``(n, n)``.

    The errors of the products are taken for independent, each of half a unit in the last place.
    """
    rows, across = np.asarray(v, np.float64), np.asarray(keys, np.float64).T
    unit = float(np.hypot(FLOAT32_ROUNDING, rounding))
    return rows @ across, unit * np.sqrt(rows**2 @ across**2)  # (n, d_in) @ (d_in, n)


def _effect(
    u: FloatArray, v: FloatArray, keys: FloatArray, kept: Sequence[int], rows: Float64Array
) -> float:
    wide, others = np.asarray(u, np.float64), np.asarray(keys, np.float64)[kept].T  # (d_in, k)
    before = wide @ (np.asarray(v, np.float64) @ others)  # (d_out, n) @ ((n, d_in) @ (d_in, k))
    after = wide[:, kept] @ (rows @ others)
    size = float(np.linalg.norm(before))
    return float(np.linalg.norm(after - before)) / size if size else 0.0


def _norm(u: FloatArray, kept: Sequence[int], rows: Float64Array) -> float:
    """Return ‖U_k rows‖_F = sqrt(Σ (UᵀU) ∘ (rows rowsᵀ))."""
    wide = np.asarray(u, np.float64)[:, kept]
    gram = (wide.T @ wide) * (rows @ rows.T)  # (k, k)
    return float(np.sqrt(max(float(gram.sum()), 0.0)))
