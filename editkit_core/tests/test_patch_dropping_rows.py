"""Rows of a batch's change without some edits, against solves of the rest from C, K and R."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editkit_core.patch.dropping_rows import (
    FLOAT16_ROUNDING,
    Float64Array,
    is_a_solve,
    left_out,
    rounding_of,
    solved_without,
)

D_IN, D_OUT = 24, 9


class Batch:
    """A random batch and its solve, of the key width's unknowns; ``earlier`` keys get no value."""

    def __init__(self, seed: int, n: int = 6, weight: float = 2.0, earlier: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self.weight = weight
        seen = draw.standard_normal((D_IN, 90)) * draw.uniform(0.3, 3, (D_IN, 1))
        self.moment = seen @ seen.T / 90
        self.keys = draw.standard_normal((D_IN, n))
        self.past = draw.standard_normal((D_IN, earlier))
        self.u = draw.standard_normal((D_OUT, n))

    def rows(self, kept: list[int] | None = None) -> Float64Array:
        """Return K_kᵀ (λ C + K_k K_kᵀ + K_p K_pᵀ)⁻¹."""
        keys = self.keys if kept is None else self.keys[:, kept]
        whole = self.weight * self.moment + keys @ keys.T + self.past @ self.past.T
        rows: Float64Array = np.linalg.solve(whole, keys).T
        return rows


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 8),
    weight=st.floats(0.05, 50),
    earlier=st.integers(0, 4),
    picks=st.sets(st.integers(0, 7), min_size=1),
)
def test_the_rows_are_those_of_a_solve_of_the_rest(
    seed: int, n: int, weight: float, earlier: int, picks: set[int]
) -> None:
    gone = sorted(pick for pick in picks if pick < n)
    kept = [i for i in range(n) if i not in gone]
    if not gone or not kept:
        return
    batch = Batch(seed, n, weight, earlier)
    rows = batch.rows()
    assert is_a_solve(rows, batch.keys.T)
    rest = solved_without(batch.u, rows, batch.keys.T, gone)
    np.testing.assert_allclose(rest.v, batch.rows(kept), rtol=1e-7, atol=1e-9)


def test_dropping_two_at_once_is_dropping_one_after_the_other() -> None:
    batch = Batch(0)
    both = solved_without(batch.u, batch.rows(), batch.keys.T, [1, 4]).v
    first = solved_without(batch.u, batch.rows(), batch.keys.T, [4]).v
    kept = [0, 1, 2, 3, 5]
    second = solved_without(batch.u[:, kept], first, batch.keys[:, kept].T, [1]).v
    np.testing.assert_allclose(both, second, rtol=1e-10, atol=1e-12)


def test_the_order_of_the_dropped_ones_does_not_matter() -> None:
    batch = Batch(1)
    one = solved_without(batch.u, batch.rows(), batch.keys.T, [0, 3]).v
    other = solved_without(batch.u, batch.rows(), batch.keys.T, [3, 0]).v
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("weight", "stored"),
    [(0.003, np.float32), (0.3, np.float32), (30, np.float32), (0.3, np.float16), (30, np.float16)],
)
def test_the_estimated_error_is_of_the_size_of_the_real_one(
    weight: float, stored: type[np.floating]
) -> None:
    ratios = []
    for seed in range(20):
        batch = Batch(seed, weight=weight)
        kept, keys = [0, 1, 3, 4, 5], batch.keys.T.astype(stored)
        rows = batch.rows().astype(np.float32)
        rounding = rounding_of(keys, exact=False)
        rest = solved_without(batch.u, rows, keys, [2], rounding=rounding)
        exact = batch.u[:, kept] @ batch.rows(kept)
        wrong = batch.u[:, kept] @ rest.v - exact
        ratios.append(np.linalg.norm(wrong) / np.linalg.norm(exact) / rest.error)
    assert 0.02 < np.median(ratios) < 1
    assert max(ratios) < 3


def test_values_that_are_met_without_slack_leave_nothing_to_solve_with() -> None:
    batch = Batch(0)
    solved = np.linalg.solve(batch.moment, batch.keys)
    rows = np.linalg.solve(batch.keys.T @ solved, solved.T).astype(np.float32)  # V K = I
    assert is_a_solve(rows, batch.keys.T)
    assert solved_without(batch.u, rows, batch.keys.T, [2]).error == np.inf
    assert left_out(batch.u, rows, batch.keys.T, [2]).effect < 1e-5


def test_float16_keys_are_too_rough_for_a_batch_with_little_slack() -> None:
    batch = Batch(0, weight=0.003)
    keys = batch.keys.T.astype(np.float16)
    rest = solved_without(batch.u, batch.rows(), keys, [2], rounding=rounding_of(keys, exact=False))
    assert rest.error > 0.1


def test_left_out_rows_are_the_solve_with_nothing_missing_at_the_dropped_keys() -> None:
    batch, kept = Batch(0), [0, 1, 3, 4, 5]
    rest = left_out(batch.u, batch.rows(), batch.keys.T, [2])
    protecting = Batch(0)
    protecting.past = batch.keys[:, [2]]
    np.testing.assert_allclose(rest.v, protecting.rows(kept), rtol=1e-9, atol=1e-11)


def test_the_effect_is_what_changes_at_the_others_keys() -> None:
    batch, kept = Batch(3), [1, 2, 3, 4, 5]
    before = batch.u @ batch.rows() @ batch.keys[:, kept]
    for rest in (
        left_out(batch.u, batch.rows(), batch.keys.T, [0]),
        solved_without(batch.u, batch.rows(), batch.keys.T, [0]),
    ):
        after = batch.u[:, kept] @ rest.v @ batch.keys[:, kept]
        expected = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert rest.effect == pytest.approx(expected)


def test_other_rows_are_no_solve() -> None:
    batch, draw = Batch(0), np.random.default_rng(5)
    assert not is_a_solve(draw.standard_normal((6, D_IN)), batch.keys.T)
    assert not is_a_solve(2 * np.linalg.pinv(batch.keys), batch.keys.T)
    assert not is_a_solve(-batch.rows(), batch.keys.T)
    assert not is_a_solve(batch.rows()[::-1], batch.keys.T)


def test_keys_that_a_file_holds_as_float16_are_known_by_their_numbers() -> None:
    keys = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    short = keys.astype(np.float16).astype(np.float32)
    assert rounding_of(short, exact=False) == FLOAT16_ROUNDING
    assert rounding_of(short, exact=True) < 1e-7
    assert rounding_of(keys, exact=False) < 1e-7
    assert rounding_of(keys * 1e6, exact=False) < 1e-7
