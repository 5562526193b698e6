"""The algebra of ROME's rank-one change, against closed forms and dense solves in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editkit_core.errors import DegenerateKeyError, NonFiniteEditError
from editkit_core.numerics.covariance import Covariance
from editkit_core.numerics.solve import factor_spd
from editkit_rome.rank_one import RankOne, direction

D_OUT, D_IN = 24, 40


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return draw(D_OUT, D_IN, seed=0)


@pytest.fixture(scope="module")
def moment() -> Tensor:
    keys = draw(D_IN, 300, seed=1) * torch.logspace(-1, 1, D_IN, dtype=torch.float64)[:, None]
    return keys @ keys.T / 300


@pytest.fixture(scope="module")
def key() -> Tensor:
    return draw(D_IN, seed=2)


@pytest.fixture(scope="module")
def value() -> Tensor:
    return draw(D_OUT, seed=3)


def rank_one(
    *, key: Tensor, missing: Tensor, covariance: Covariance, constrained: Tensor | None = None
) -> RankOne:
    """The two steps as the method takes them."""
    return direction(key=key, covariance=covariance, constrained=constrained).carrying(missing)


def covariance_of(moment: Tensor) -> Covariance:
    return Covariance(factor=factor_spd(moment), origin={})


def dense(update: RankOne) -> Tensor:
    return update.u.double() @ update.v.double()


@pytest.fixture(scope="module")
def update(weight: Tensor, moment: Tensor, key: Tensor, value: Tensor) -> RankOne:
    return rank_one(key=key, missing=value - weight @ key, covariance=covariance_of(moment))


def test_constraint_exact(weight: Tensor, key: Tensor, value: Tensor, update: RankOne) -> None:
    # Only u is rounded after it was computed, so the error is that of one float32 rounding.
    reached = (weight + dense(update)) @ key
    assert float((reached - value).norm() / value.norm()) < 2e-7


def test_equals_dense_kkt(
    weight: Tensor, moment: Tensor, key: Tensor, value: Tensor, update: RankOne
) -> None:
    # For each row δ of Δ: minimise δ C δᵀ subject to δ k = r, by its Karush-Kuhn-Tucker system.
    system = torch.zeros(D_IN + 1, D_IN + 1, dtype=torch.float64)
    system[:D_IN, :D_IN] = 2 * moment
    system[:D_IN, D_IN] = system[D_IN, :D_IN] = key
    rhs = torch.zeros(D_IN + 1, D_OUT, dtype=torch.float64)
    rhs[D_IN] = value - weight @ key
    expected = torch.linalg.solve(system, rhs)[:D_IN].T
    assert float((dense(update) - expected).norm() / expected.norm()) < 1e-6


def test_cheaper_than_other_feasible_changes(
    weight: Tensor, moment: Tensor, key: Tensor, value: Tensor, update: RankOne
) -> None:
    def cost(change: Tensor) -> float:
        return float(torch.trace(change @ moment @ change.T))

    missing = value - weight @ key
    for seed in range(200):
        row = draw(D_IN, seed=10 + seed)
        other = torch.outer(missing, row) / (row @ key)
        assert cost(dense(update)) <= cost(other)


def test_rank_one_rowspace(moment: Tensor, key: Tensor, update: RankOne) -> None:
    change = dense(update)
    singular = torch.linalg.svdvals(change)
    assert float(singular[1] / singular[0]) < 1e-12
    direction = torch.linalg.solve(moment, key)
    v = update.v.double()[0]
    assert float(v @ direction / (v.norm() * direction.norm())) == pytest.approx(1.0, abs=1e-12)


def test_orthogonal_input_unchanged(update: RankOne) -> None:
    v = update.v.double()[0]
    other = torch.zeros(D_IN, dtype=torch.float64)
    other[3], other[17] = v[17], -v[3]  # v · other is exactly 0 in floating point
    assert torch.equal(update.on(other), torch.zeros(D_OUT, dtype=torch.float64))


def test_rescaled_c_same_delta(
    weight: Tensor, moment: Tensor, key: Tensor, value: Tensor, update: RankOne
) -> None:
    scaled = rank_one(
        key=key, missing=value - weight @ key, covariance=covariance_of(moment * 1234.5)
    )
    torch.testing.assert_close(dense(scaled), dense(update), rtol=1e-5, atol=1e-9)


def test_identity_covariance_is_the_least_squares_change(
    weight: Tensor, key: Tensor, value: Tensor
) -> None:
    missing = value - weight @ key
    update = rank_one(key=key, missing=missing, covariance=Covariance(factor=None, origin={}))
    expected = torch.outer(missing, key) / key.square().sum()
    torch.testing.assert_close(dense(update), expected, rtol=1e-5, atol=1e-7)


def test_asymmetric_variant_reproduced(
    weight: Tensor, moment: Tensor, key: Tensor, value: Tensor
) -> None:
    bare = key + 0.3 * draw(D_IN, seed=5)
    update = rank_one(
        key=key,
        missing=value - weight @ bare,
        covariance=covariance_of(moment),
        constrained=bare,
    )
    direction = torch.linalg.inv(moment) @ key
    expected = torch.outer(value - weight @ bare, direction) / (bare @ direction)
    assert float((dense(update) - expected).norm() / expected.norm()) < 1e-6
    after = weight + dense(update)
    assert float((after @ bare - value).norm() / value.norm()) < 1e-6
    assert float((after @ key - value).norm() / value.norm()) > 0.01


def test_small_denominator_guard(moment: Tensor, key: Tensor, value: Tensor) -> None:
    direction = torch.linalg.solve(moment, key)
    other = draw(D_IN, seed=6)
    orthogonal = other - direction * (other @ direction) / direction.square().sum()
    with pytest.raises(DegenerateKeyError, match="cosine") as caught:
        rank_one(key=key, missing=value, covariance=covariance_of(moment), constrained=orthogonal)
    assert abs(caught.value.facts["cosine"]) < 1e-6  # type: ignore[arg-type]  # a float


def test_a_zero_key_is_refused(value: Tensor) -> None:
    with pytest.raises(DegenerateKeyError):
        rank_one(
            key=torch.zeros(D_IN),
            missing=value,
            covariance=Covariance(factor=None, origin={}),
        )


def test_a_value_that_is_not_finite_is_refused(key: Tensor, value: Tensor) -> None:
    with pytest.raises(NonFiniteEditError):
        rank_one(
            key=key,
            missing=value / 0,
            covariance=Covariance(factor=None, origin={}),
        )


@pytest.mark.parametrize("power", [4, 8])
def test_constraint_holds_with_ill_conditioned_statistics(power: int, value: Tensor) -> None:
    basis, _ = torch.linalg.qr(draw(D_IN, D_IN, seed=7))
    moment = basis @ torch.diag(torch.logspace(-power, 0, D_IN, dtype=torch.float64)) @ basis.T
    key = basis @ torch.logspace(-power / 2, 0, D_IN, dtype=torch.float64)
    update = rank_one(key=key, missing=value, covariance=covariance_of((moment + moment.T) / 2))
    assert float((update.on(key) - value).norm() / value.norm()) < 2e-7


@pytest.mark.parametrize(("variant", "bounded"), [("r-rome", True), ("rome", False)])
def test_100_sequential_no_collapse(
    weight: Tensor, moment: Tensor, variant: str, bounded: bool
) -> None:
    """Where a prompt's bare key says little about its averaged one, only one key throughout holds.

    Each edit is computed on the weight that the ones before left. In the first code some bare key
    is sooner or later nearly orthogonal to the direction, and that one change disables the weight.
    """
    covariance = covariance_of(moment)
    edited = weight.clone()
    scale = torch.linalg.cholesky(moment)
    for number in range(100):
        shared, averaged, own = (scale @ draw(D_IN, seed=100 + 3 * number + i) for i in range(3))
        key, bare = shared + 0.2 * averaged, 0.2 * shared + own
        constrained = key if variant == "r-rome" else bare
        value = weight @ constrained + draw(D_OUT, seed=1000 + number)
        update = rank_one(
            key=key,
            missing=value - edited @ constrained,
            covariance=covariance,
            constrained=constrained,
        )
        edited = edited + dense(update)
    growth = float((edited - weight).norm() / weight.norm())
    assert (growth < 5) == bounded, growth
