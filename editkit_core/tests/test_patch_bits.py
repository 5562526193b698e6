"""Tensors as bits: what counts as equal, as finite, and as changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from editkit_core.patch import bits

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_anywhere_is_found(dtype: torch.dtype, bad: float) -> None:
    tensor = torch.ones(7, 50, dtype=dtype)
    assert bits.all_finite(tensor)
    for place in range(0, 350, 13):
        spoiled = tensor.clone()
        spoiled.view(-1)[place] = bad
        assert not bits.all_finite(spoiled)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_two_zeros_differ_and_a_nan_equals_itself(dtype: torch.dtype) -> None:
    zero, nan = torch.zeros(2, dtype=dtype), torch.full((2,), float("nan"), dtype=dtype)
    assert not bits.same_bits(zero, -zero)
    assert bits.same_bits(nan, nan.clone())
    assert not bits.same_bits(
        zero, zero.to(torch.float32 if dtype != torch.float32 else torch.half)
    )


def test_bytes_are_row_major_also_of_a_transposed_tensor() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    assert bytes(bits.as_bytes(tensor)) == np.arange(6.0, dtype="<f4").reshape(2, 3).T.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 50), (5, 3), (1, 1)])
def test_a_seal_notices_any_number_that_changes(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    tensor = torch.randn(shape).to(dtype)
    sealed = bits.seal(tensor)
    assert bits.seal(tensor.clone()) == sealed
    for place in range(0, tensor.numel(), 7):
        changed = tensor.clone()
        changed.view(-1)[place] = torch.nextafter(
            changed.view(-1)[place].float(), torch.tensor(9e4)
        )
        if dtype in (torch.float16, torch.bfloat16):
            changed.view(-1)[place] = 9.0
        assert bits.seal(changed) != sealed


def test_a_seal_notices_rows_that_change_places() -> None:
    tensor = torch.randn(6, 4)
    assert bits.seal(tensor) != bits.seal(tensor.flip(0))


def test_a_seal_is_of_the_bits_not_of_the_values() -> None:
    zero = torch.zeros(2, 2)
    assert bits.seal(zero) != bits.seal(-zero)


def test_finite_numbers_whose_sum_is_not_are_finite() -> None:
    assert bits.all_finite(torch.full((9, 9), 6e4, dtype=torch.float16))
    assert bits.all_finite(torch.full((9, 9), 3e38))
