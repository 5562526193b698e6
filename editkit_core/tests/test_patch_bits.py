"""Tensors as bits: what counts as equal, as finite, and as one cast."""

from __future__ import annotations

from itertools import permutations

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


def test_small_changes_are_not_lost_one_by_one() -> None:
    pristine = torch.ones(1, dtype=torch.bfloat16)
    small = torch.full((1,), 2.0**-10, dtype=torch.float64)  # below bfloat16's step at 1
    assert bits.cast_once(pristine, [small]).item() == 1
    assert bits.cast_once(pristine, [small] * 8).item() == 1 + 2**-7


def test_the_pristine_tensor_is_left_as_it_is() -> None:
    pristine = torch.ones(3, dtype=torch.float64)
    bits.cast_once(pristine, [torch.ones(3, dtype=torch.float64)])
    assert pristine.tolist() == [1, 1, 1]


def test_opposite_changes_cancel_exactly_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    pristine = torch.randn(50, generator=generator)
    delta = torch.randn(50, generator=generator).double() * 2.0**-20
    for order in permutations([delta, -delta, 2 * delta, -2 * delta]):
        assert bits.same_bits(bits.cast_once(pristine, order), pristine)
