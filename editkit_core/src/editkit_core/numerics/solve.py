"""Solving with a symmetric positive definite matrix: Cholesky in float64, never an inverse.

Shapes: n is the side of the matrix, r the number of right-hand sides.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from editkit_core.errors import IllConditionedError

__all__ = ["MAX_CONDITION", "SpdFactor", "factor_spd", "solve_spd"]

# float64 has 16 digits; a solve loses as many as the condition number has.
MAX_CONDITION = 1e13
# Each step halves the error or better unless the outermost eigenvalues coincide, in which case
# any mixture of their vectors gives the same value.
_POWER_STEPS = 30


@attrs.frozen(eq=False, kw_only=True)
class SpdFactor:
    """The Cholesky factor of a symmetric positive definite matrix C = L Lᵀ.

    Attributes:
        lower: L, ``(n, n)`` float64 on the CPU.
        condition: Estimate of the condition number λ_max / λ_min, from below.
    """

    lower: Tensor
    condition: float

    @property
    def size(self) -> int:
        """The side n of the matrix."""
        return int(self.lower.shape[0])


def factor_spd(
    matrix: Tensor,
    *,
    ridge: float = 0.0,
    max_condition: float = MAX_CONDITION,
    what: str = "the key statistics",
) -> SpdFactor:
    """Factor C + ridge · mean(diag C) · I by Cholesky.

    Args:
        matrix: C, ``(n, n)``, symmetric, any floating dtype and device; read as float64 on the CPU.
        ridge: Share of the mean diagonal entry that is added to the diagonal.
        max_condition: Largest condition number accepted.
        what: What the matrix is, for messages.

    Raises:
        IllConditionedError: C is not positive definite or its condition number is too large.
    """
    system = matrix.detach().to(device="cpu", dtype=torch.float64, copy=True)
    del matrix  # of a large one, that nobody else holds, there should not be two meanwhile
    if system.ndim != 2 or system.shape[0] != system.shape[1]:
        raise IllConditionedError(
            f"{what} have shape {tuple(system.shape)}; a square matrix is needed."
        )
    mean = system.diagonal().mean()
    system.diagonal().add_(ridge * mean)
    lower, info = torch.linalg.cholesky_ex(system)
    finite = bool(torch.isfinite(system.sum()))  # entry by entry it would take another matrix
    if not finite or int(info) != 0 or not bool(mean > 0):
        raise _refusal(what, system, float("inf"), max_condition)
    condition = _largest(system) / _smallest(lower)
    if not condition <= max_condition:
        raise _refusal(what, system, condition, max_condition)
    return SpdFactor(lower=lower, condition=condition)


def solve_spd(factor: SpdFactor, rhs: Tensor) -> Tensor:
    """Solve C x = rhs by two triangular solves.

    Args:
        factor: What :func:`factor_spd` returned.
        rhs: ``(n,)`` or ``(n, r)``, any floating dtype and device.

    Returns:
        x with the shape of ``rhs``, float64 on the CPU.
    """
    right = rhs.detach().to(device="cpu", dtype=torch.float64)
    columns = right if right.ndim == 2 else right[:, None]
    solved = _solved(factor.lower, columns)
    return solved if right.ndim == 2 else solved[:, 0]


def _solved(lower: Tensor, rhs: Tensor) -> Tensor:
    """Solve L Lᵀ x = rhs, ``(n, n), (n, r) -> (n, r)``.

    `torch.cholesky_solve` gives the same bits, but copies L in every call.
    """
    below = torch.linalg.solve_triangular(lower, rhs, upper=False)
    solved: Tensor = torch.linalg.solve_triangular(lower.mT, below, upper=True)
    return solved


def _largest(matrix: Tensor) -> float:
    vector = _start(len(matrix))
    value = 0.0
    for _ in range(_POWER_STEPS):
        image = matrix @ vector  # (n, n) @ (n,) -> (n,)
        value = float(image.norm())
        vector = image / value
    return value


def _smallest(lower: Tensor) -> float:
    vector = _start(len(lower))
    value = 0.0
    for _ in range(_POWER_STEPS):
        image = _solved(lower, vector[:, None])[:, 0]
        value = float(image.norm())
        vector = image / value
    return 1.0 / value


def _start(size: int) -> Tensor:
    vector: Tensor = torch.sin(torch.arange(1, size + 1, dtype=torch.float64) * 1.7) + 0.1
    return torch.nn.functional.normalize(vector, dim=0)


def _refusal(what: str, matrix: Tensor, condition: float, limit: float) -> IllConditionedError:
    empty = int((matrix.diagonal() == 0).sum())
    dead = f" {empty} of {len(matrix)} key entries are always 0." if empty else ""
    seen = (
        "are not positive definite"
        if condition == float("inf")
        else f"have condition number {condition:.1e}, more than {limit:.0e}"
    )
    return IllConditionedError(
        f"{what} {seen}, so that solving with them would give noise.{dead} Make them from more "
        f"tokens (at least {10 * len(matrix):,} for {len(matrix)} key entries), set a "
        "covariance_ridge such as 1e-6, or use covariance=identity.",
        condition=condition,
        limit=limit,
        size=len(matrix),
    )
