"""The change of a weight for a batch of edits."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor

from editkit_core.errors import IllConditionedError, NonFiniteEditError
from editkit_core.numerics.batch_solve import batch_change
from editkit_core.numerics.solve import factor_spd, solve_spd

D_IN, D_OUT, N = 30, 12, 6


@attrs.frozen
class Dense:
    """C, solved with as a general matrix."""

    matrix: Tensor

    def solve(self, rhs: Tensor) -> Tensor:
        return torch.linalg.solve(self.matrix, rhs.double())


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moment(seed: int = 5) -> Tensor:
    seen = numbers(D_IN, 200, seed=seed)
    return seen @ seen.T / 200


K, R = numbers(D_IN, N, seed=1), numbers(D_OUT, N, seed=2)


@pytest.mark.parametrize("weight", [1e-3, 1.0, 1e4])
def test_normal_equations(weight: float) -> None:
    change, c = batch_change(K, R, Dense(moment()), weight=weight), moment()
    left = (change.u @ change.v) @ (weight * c + K @ K.T)
    assert float((left - R @ K.T).norm() / (R @ K.T).norm()) < 1e-10


def test_woodbury_equals_direct() -> None:
    c = moment()
    direct = torch.linalg.solve((3.0 * c + K @ K.T), (R @ K.T).T).T
    change = batch_change(K, R, Dense(c), weight=3.0)
    torch.testing.assert_close(change.u @ change.v, direct, rtol=1e-10, atol=1e-12)


def test_small_lambda_stable() -> None:
    """The direct form loses every digit at λ = 1e-12; ours reaches the constrained solution."""
    c = moment()
    limit = R @ torch.linalg.solve(K.T @ torch.linalg.solve(c, K), torch.linalg.solve(c, K).T)
    ours = batch_change(K, R, Dense(c), weight=1e-12)
    direct = torch.linalg.solve(1e-12 * c + K @ K.T, (R @ K.T).T).T
    scale = limit.norm()
    assert float((ours.u @ ours.v - limit).norm() / scale) < 1e-9
    assert float((direct - limit).norm() / scale) > 1e-5


def test_without_weight_every_key_gets_its_value() -> None:
    change = batch_change(K, R, Dense(moment()))
    torch.testing.assert_close(change.on(K), R, rtol=1e-10, atol=1e-10)


def test_it_is_the_cheapest_change_that_gives_the_values() -> None:
    """Any other one differs by N with N K = 0, which costs tr(N C Nᵀ) more."""
    c = moment()
    change = batch_change(K, R, Dense(c))
    delta = change.u @ change.v
    cost = torch.trace(delta @ c @ delta.T)
    free = torch.eye(D_IN, dtype=torch.float64) - K @ torch.linalg.pinv(K)
    for seed in range(5):
        other = numbers(D_OUT, D_IN, seed=10 + seed) @ free
        more = torch.trace((delta + other) @ c @ (delta + other).T) - cost
        assert float(more) == pytest.approx(float(torch.trace(other @ c @ other.T)), rel=1e-8)
        assert float((delta @ c @ other.T).norm()) < 1e-9


def test_a_single_fact_is_shrunk_rome() -> None:
    c, k, r = moment(), K[:, :1], R[:, :1]
    kappa = float(k.T @ torch.linalg.solve(c, k))
    solved = torch.linalg.solve(c, k)
    rome = r @ solved.T / kappa
    one = batch_change(k, r, Dense(c), weight=7.0)
    torch.testing.assert_close(one.u @ one.v, rome * kappa / (7.0 + kappa), rtol=1e-10, atol=1e-12)


def test_permuting_the_edits_changes_nothing() -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    one = batch_change(K, R, Dense(moment()), weight=2.0)
    other = batch_change(K[:, order], R[:, order], Dense(moment()), weight=2.0)
    torch.testing.assert_close(other.u @ other.v, one.u @ one.v, rtol=1e-10, atol=1e-12)


def test_dropping_an_edit_and_solving_again_is_solving_without_it() -> None:
    kept = [0, 1, 2, 4, 5]
    again = batch_change(K[:, kept], R[:, kept], Dense(moment()), weight=2.0)
    fresh = torch.linalg.solve(
        2.0 * moment() + K[:, kept] @ K[:, kept].T, (R[:, kept] @ K[:, kept].T).T
    ).T
    torch.testing.assert_close(again.u @ again.v, fresh, rtol=1e-10, atol=1e-12)


def test_a_cholesky_factor_gives_the_same() -> None:
    @attrs.frozen
    class Factored:
        def solve(self, rhs: Tensor) -> Tensor:
            return solve_spd(factor_spd(moment()), rhs)

    one = batch_change(K, R, Factored(), weight=2.0)
    other = batch_change(K, R, Dense(moment()), weight=2.0)
    torch.testing.assert_close(one.v, other.v, rtol=1e-9, atol=1e-12)


def test_two_equal_keys_without_weight_are_refused_and_named() -> None:
    keys = K.clone()
    keys[:, 4] = keys[:, 1]
    with pytest.raises(IllConditionedError, match="edits 1 and 4"):
        batch_change(keys, R, Dense(moment()))


def test_two_equal_keys_with_weight_meet_in_the_middle() -> None:
    keys = K.clone()
    keys[:, 4] = keys[:, 1]
    change = batch_change(keys, R, Dense(moment()), weight=1e-6)
    middle = (R[:, 1] + R[:, 4]) / 2
    torch.testing.assert_close(change.on(keys[:, 1:2])[:, 0], middle, rtol=1e-4, atol=1e-4)


def test_what_is_not_finite_is_refused() -> None:
    keys = K.clone()
    keys[0, 0] = float("nan")
    with pytest.raises(NonFiniteEditError):
        batch_change(keys, R, Dense(moment()))


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_a_batch_in_parts_adds_up_to_the_whole(weight: float) -> None:
    """Each part takes what the parts before it left missing, and protects their keys."""
    c = Dense(moment())
    whole = batch_change(K, R, c, weight=weight)
    total = torch.zeros(D_OUT, D_IN, dtype=torch.float64)
    for first in range(0, N, 2):
        keys, earlier = K[:, first : first + 2], K[:, :first]
        missing = R[:, first : first + 2] - total @ keys
        part = batch_change(keys, missing, c, weight=weight, earlier=earlier)
        assert part.v.shape == (2, D_IN)
        total = total + part.u @ part.v
    torch.testing.assert_close(total, whole.u @ whole.v, rtol=1e-9, atol=1e-11)


def test_earlier_keys_that_must_hold_see_no_change() -> None:
    earlier = numbers(D_IN, 4, seed=3)
    change = batch_change(K, R, Dense(moment()), earlier=earlier)
    torch.testing.assert_close(change.on(K), R, rtol=1e-9, atol=1e-9)
    assert float(change.on(earlier).norm()) < 1e-9


def test_earlier_keys_minimise_their_own_disturbance_too() -> None:
    """The gradient of λ tr(Δ C Δᵀ) + ‖Δ K - R‖² + ‖Δ K_p‖², by autograd, is 0 at the change."""
    c, earlier = moment(), numbers(D_IN, 4, seed=3)
    change = batch_change(K, R, Dense(c), weight=0.7, earlier=earlier)
    delta = (change.u @ change.v).requires_grad_()
    cost = 0.7 * torch.trace(delta @ c @ delta.T)
    cost = cost + ((delta @ K - R) ** 2).sum() + ((delta @ earlier) ** 2).sum()
    (slope,) = torch.autograd.grad(cost, delta)
    assert float(slope.norm()) < 1e-9 * float(R.norm())
