"""One rounding to half precision, against every number of both types and an exact oracle."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from editkit_core.patch.rounding import round_once

HALVES = [torch.bfloat16, torch.float16]
INFINITY_BITS = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}
SMALLEST = {torch.bfloat16: Fraction(2) ** -133, torch.float16: Fraction(2) ** -24}
BITS = {torch.bfloat16: 8, torch.float16: 11}
LARGEST_POWER = {torch.bfloat16: 128, torch.float16: 16}


def ladder(dtype: torch.dtype) -> torch.Tensor:
    """Every number of the type from 0 up; what would come after the largest stands last."""
    bits = torch.arange(INFINITY_BITS[dtype], dtype=torch.int32).to(torch.int16)
    finite = bits.view(dtype).double()
    return torch.cat([finite, torch.tensor([2.0 ** LARGEST_POWER[dtype]], dtype=torch.float64)])


def exactly(value: float, dtype: torch.dtype) -> float:
    """Round by whole numbers: scale so that the last kept bit is 1, then to the nearest even."""
    exact = Fraction(value)
    if exact == 0:
        return value
    exponent = math.frexp(value)[1] - BITS[dtype]
    step = max(Fraction(2) ** exponent, SMALLEST[dtype])
    rounded = round(exact / step) * step  # Python rounds a Fraction's ties to even
    if abs(rounded) >= Fraction(2) ** LARGEST_POWER[dtype]:
        return math.copysign(math.inf, value)
    return math.copysign(float(rounded), value)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", HALVES)
def test_next_to_every_midpoint_the_nearer_number_is_taken_and_the_even_one_on_it(
    dtype: torch.dtype, sign: int
) -> None:
    numbers = ladder(dtype)
    low, high = numbers[:-1], numbers[1:]
    middle = (low + high) / 2  # exact in float64
    even = torch.arange(len(low)) % 2 == 0
    infinite = torch.tensor(torch.inf).double()
    high = torch.where(high == numbers[-1], infinite, high)
    cases = [
        (low, low),
        (torch.nextafter(low, infinite), low),
        (torch.nextafter(middle, -infinite), low),
        (middle * (1 - 2.0**-40), low),
        (middle, torch.where(even, low, high)),
        (middle * (1 + 2.0**-40), high),
        (torch.nextafter(middle, infinite), high),
    ]
    for given, expected in cases:
        found = round_once(sign * given, dtype)
        assert found.dtype == dtype
        assert torch.equal(found.double(), sign * expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_random_numbers_agree_with_whole_number_arithmetic(dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(0)
    mantissas = torch.randn(6000, dtype=torch.float64, generator=chance)
    powers = torch.randint(-160, 135, (6000,), generator=chance)
    numbers = torch.ldexp(mantissas, powers)
    expected = [exactly(value, dtype) for value in numbers.tolist()]
    assert round_once(numbers, dtype).double().tolist() == expected


@pytest.mark.parametrize("dtype", HALVES)
def test_torchs_own_cast_rounds_twice_which_is_why_this_exists(dtype: torch.dtype) -> None:
    half_step = 2.0 ** -BITS[dtype]
    number = torch.tensor([1 + half_step + 2.0**-40], dtype=torch.float64)
    assert number.to(dtype).double().item() == 1
    assert round_once(number, dtype).double().item() == 1 + 2 * half_step


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_special_numbers_stay_what_they_are(dtype: torch.dtype) -> None:
    given = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=torch.float64)
    found = round_once(given, dtype)
    assert torch.equal(found[:4].double(), given[:4])
    assert torch.equal(torch.signbit(found[:2]), torch.signbit(given[:2]))
    assert bool(found[4].isnan())


@pytest.mark.parametrize("dtype", HALVES)
def test_a_transposed_view_is_rounded_in_place_of_its_numbers(dtype: torch.dtype) -> None:
    numbers = torch.arange(12, dtype=torch.float64).reshape(3, 4).T / 7
    expected = [[exactly(value, dtype) for value in row] for row in numbers.tolist()]
    assert round_once(numbers, dtype).double().tolist() == expected


def test_float32_and_float64_are_torchs_own_single_rounding() -> None:
    numbers = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(round_once(numbers, torch.float32), numbers.to(torch.float32))
    assert round_once(numbers, torch.float64) is numbers
