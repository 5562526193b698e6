"""Solving with symmetric positive definite matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editkit_core.errors import IllConditionedError
from editkit_core.numerics.solve import factor_spd, solve_spd


def spd(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = basis @ torch.diag(eigenvalues.double()) @ basis.T
    return (matrix + matrix.T) / 2


def test_solution_equals_a_general_dense_solve() -> None:
    matrix = spd(torch.logspace(-3, 3, 40))
    rhs = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.linalg.solve(matrix, rhs)
    torch.testing.assert_close(solve_spd(factor_spd(matrix), rhs), expected, rtol=1e-9, atol=1e-9)


def test_a_vector_gives_a_vector() -> None:
    factor = factor_spd(torch.eye(5) * 4)
    torch.testing.assert_close(
        solve_spd(factor, torch.ones(5)), torch.full((5,), 0.25, dtype=torch.float64)
    )


def test_float64_keeps_ten_digits_at_condition_one_million() -> None:
    matrix = spd(torch.logspace(-6, 0, 60))
    truth = torch.randn(60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    solved = solve_spd(factor_spd(matrix), matrix @ truth)
    assert float((solved - truth).norm() / truth.norm()) < 1e-9


@pytest.mark.parametrize("power", [2, 5, 8])
def test_condition_is_estimated_within_a_factor_of_two(power: int) -> None:
    matrix = spd(torch.logspace(-power, 0, 50))
    assert 0.5 * 10**power < factor_spd(matrix).condition < 2 * 10**power


def test_the_matrix_given_is_not_written_to() -> None:
    matrix = torch.eye(4, dtype=torch.float64)
    factor_spd(matrix, ridge=0.5)
    torch.testing.assert_close(matrix, torch.eye(4, dtype=torch.float64), rtol=0, atol=0)


def test_a_singular_matrix_is_refused_with_the_number_of_dead_entries() -> None:
    matrix = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    with pytest.raises(IllConditionedError, match="1 of 3 key entries are always 0"):
        factor_spd(matrix)


def test_too_large_a_condition_number_is_refused_and_named() -> None:
    with pytest.raises(IllConditionedError, match="condition number") as caught:
        factor_spd(spd(torch.logspace(-6, 0, 30)), max_condition=1e4)
    assert 5e5 < caught.value.facts["condition"] < 2e6  # type: ignore[operator]  # a float


def test_a_matrix_with_nan_is_refused() -> None:
    with pytest.raises(IllConditionedError):
        factor_spd(torch.full((3, 3), float("nan")))


def test_a_ridge_makes_a_singular_matrix_solvable() -> None:
    matrix = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    solved = solve_spd(factor_spd(matrix, ridge=1e-3), torch.tensor([0.0, 0.0, 1.0]))
    assert float(solved[2]) == pytest.approx(1 / 1e-3)


def test_a_matrix_that_is_not_square_is_refused() -> None:
    with pytest.raises(IllConditionedError, match="square"):
        factor_spd(torch.ones(2, 3))
