"""The change of a weight that gives many keys new values, and leaves other keys as they are.

With keys K, residuals R (what is missing at each key), C the second moment of keys and λ ≥ 0::

    min  λ · tr(Δ C Δᵀ) + ‖Δ K - R‖²          (λ = 0: the least tr(Δ C Δᵀ) with Δ K = R)
    Δ = R Kᵀ (λ C + K Kᵀ)⁻¹ = R (λ I + Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹

The second form is a system of one unknown an edit. It stays exact where the first one, of one
unknown a key entry, breaks down (small λ), and C is factored once however often it is solved with.
One key and λ = 0 give ROME's change; λ > 0 gives MEMIT's, and shrinks a single edit by κ / (λ + κ)
with κ = kᵀ C⁻¹ k.

Keys K_p of earlier edits, which are to keep what they have, are edits whose residual is 0::

    min  λ · tr(Δ C Δᵀ) + ‖Δ K - R‖² + ‖Δ K_p‖²
    Δ = [R, 0] (λ I + K̂ᵀ C⁻¹ K̂)⁻¹ K̂ᵀ C⁻¹,          K̂ = [K, K_p]

This is recursive least squares: of a batch that is solved in parts, each with the keys of the parts
before it as K_p and with what is missing after them as R, the changes add up to the Δ of the whole.

Source: Meng et al. 2023, "Mass-Editing Memory in a Transformer", equation 14; Gupta et al. 2024,
    "A Unified Framework for Model Editing", equation 9 for λ = 0; the second form is Woodbury's
    identity.
Differs: The references invert λ C + K Kᵀ or C in every call.

Legend: d_out, d_in: sides of the weight; n: edits.
"""

from __future__ import annotations

from typing import Protocol

import attrs
import torch
from torch import Tensor

from editkit_core.errors import IllConditionedError, NonFiniteEditError
from editkit_core.numerics.solve import MAX_CONDITION, factor_spd, solve_spd

__all__ = ["Change", "Solves", "batch_change"]


class Solves(Protocol):
    """Something to solve with C, as :class:`~editkit_core.numerics.covariance.Covariance`."""

    def solve(self, rhs: Tensor) -> Tensor:
        """Return C⁻¹ rhs for ``rhs (d_in, n)``, float64 on the CPU."""


@attrs.frozen(eq=False, kw_only=True)
class Change:
    """Δ = u v of a batch of edits.

    Attributes:
        u: ``(d_out, n)`` float64 on the CPU: the residuals.
        v: ``(n, d_in)`` float64 on the CPU.
        condition: Estimate of the condition number of the system of edits, from below.
    """

    u: Tensor
    v: Tensor
    condition: float

    def on(self, keys: Tensor) -> Tensor:
        """Return Δ keys for ``keys (d_in, m)``, ``(d_out, m)`` float64."""
        return self.u @ (self.v @ keys.double())  # (d_out, n) @ ((n, d_in) @ (d_in, m))


def batch_change(
    keys: Tensor,
    residuals: Tensor,
    covariance: Solves,
    *,
    weight: float = 0.0,
    earlier: Tensor | None = None,
    max_condition: float = MAX_CONDITION,
) -> Change:
    """Return Δ for a batch of edits; the formula stands at the top of the module.

    Args:
        keys: K, ``(d_in, n)``.
        residuals: R, ``(d_out, n)``.
        covariance: C, or what solves with it.
        weight: λ, how much keeping other keys counts against one edit.
        earlier: K_p, ``(d_in, p)``; p may be 0. They get no factor of their own.
        max_condition: Largest condition number of the system of edits that is accepted.

    Raises:
        IllConditionedError: The edits' keys are nearly dependent, as those of one subject are, so
            that with this λ they cannot be told apart.
        NonFiniteEditError: NaN or infinity came in.
    """
    known, wanted = keys.to("cpu", torch.float64), residuals.to("cpu", torch.float64)
    if not bool(torch.isfinite(known).all() and torch.isfinite(wanted).all()):
        raise NonFiniteEditError(
            "A key or a value is not finite. Load the model in float32, or lower the learning rate."
        )
    n = known.shape[1]
    if earlier is not None and earlier.numel():
        known = torch.cat([known, earlier.to("cpu", torch.float64)], dim=1)  # (d_in, n + p)
    solved = covariance.solve(known)  # C⁻¹ K̂, (d_in, n + p)
    system = known.T @ solved  # (n + p, d_in) @ (d_in, n + p)
    system = (system + system.T) / 2
    system.diagonal().add_(weight)
    try:
        factor = factor_spd(system, max_condition=max_condition, what="the edits' keys")
    except IllConditionedError as error:
        raise _dependent(known, error, max_condition) from error
    v = solve_spd(factor, solved.T)[:n]  # (n + p, n + p), (n + p, d_in) -> (n, d_in)
    return Change(u=wanted, v=v, condition=factor.condition)


def _dependent(keys: Tensor, error: IllConditionedError, limit: float) -> IllConditionedError:
    unit = keys / keys.norm(dim=0).clamp(min=1e-300)
    cosines = (unit.T @ unit).abs()  # (n, n)
    cosines.fill_diagonal_(-1.0)
    place = int(cosines.argmax()) if cosines.numel() else 0
    one, other = divmod(place, max(cosines.shape[1], 1))
    closest = float(cosines.max()) if cosines.numel() else 0.0
    return IllConditionedError(
        f"The keys of {keys.shape[1]} edits are nearly dependent: edits {one} and {other} have "
        f"keys of cosine {closest:.6f}. Leave one of them out, or let the change miss its values "
        "a little: a larger weight of the statistics (lambda).",
        condition=error.facts.get("condition", float("inf")),
        limit=limit,
        edits=(one, other),
    )
