"""The one sum of patches and weight: exact where it can be, in any block size, order and layout."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch

from editkit_core.errors import ApplyError
from editkit_core.patch import DenseEntry, LowRankEntry, bits, merging
from editkit_core.patch.kinds import WeightEntry
from editkit_core.patch.merging import merged
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch
from editkit_core.types import Site

SITE = Site(module="m", parameter="m.weight", layer=0)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def low_rank(out: int, into: int, rank: int, seed: int = 0) -> LowRankEntry:
    rng = np.random.default_rng(seed)
    return LowRankEntry(
        site=SITE, u=rng.normal(size=(out, rank)) * 0.1, v=rng.normal(size=(rank, into))
    )


def dense(values: torch.Tensor) -> DenseEntry:
    return DenseEntry(site=SITE, delta=values.numpy())


def test_small_changes_are_not_lost_one_by_one() -> None:
    pristine = torch.ones(1, 1, dtype=torch.bfloat16)
    small = dense(torch.full((1, 1), 2.0**-10))  # below bfloat16's step at 1
    assert merged(pristine, [(small, 1.0)], "out_in", name="w").item() == 1
    assert merged(pristine, [(small, 1.0)] * 8, "out_in", name="w").item() == 1 + 2**-7
    assert merged(pristine, [(small, 8.0)], "out_in", name="w").item() == 1 + 2**-7


def test_the_pristine_tensor_is_left_as_it_is() -> None:
    pristine = torch.ones(1, 3)
    merged(pristine, [(dense(torch.ones(1, 3)), 1.0)], "out_in", name="w")
    assert pristine.tolist() == [[1, 1, 1]]


def test_opposite_changes_cancel_exactly_in_any_order() -> None:
    pristine, delta = torch.randn(5, 10), torch.randn(5, 10) * 2.0**-20
    entry = dense(delta)
    for scales in permutations([1.0, -1.0, 2.0, -2.0]):
        found = merged(pristine, [(entry, scale) for scale in scales], "out_in", name="w")
        assert bits.same_bits(found, pristine)


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("rank", [1, 3, 4, 5, 17])
def test_every_number_is_the_exact_sum_rounded_to_float32(layout: str, rank: int) -> None:
    entry = low_rank(6, 5, rank)
    pristine = torch.randn((6, 5) if layout == "out_in" else (5, 6))
    found = merged(pristine, [(entry, 1.0), (entry, 0.5)], layout, name="w")
    for i in range(6):
        for j in range(5):
            place = (i, j) if layout == "out_in" else (j, i)
            exact = Fraction(pristine[place].item()) + Fraction(3, 2) * sum(
                Fraction(float(entry.u[i, k])) * Fraction(float(entry.v[k, j])) for k in range(rank)
            )
            # float64 sums are within 1e-15 of the exact one, which decides float32's rounding
            assert found[place].item() == pytest.approx(float(exact), rel=6e-8)
            assert abs(Fraction(found[place].item()) - exact) <= Fraction(2) ** -24 * abs(exact) * (
                1 + Fraction(1, 1000)
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 9])
def test_the_size_of_the_blocks_leaves_no_trace(
    dtype: torch.dtype, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pristine = torch.randn(37, 11).to(dtype)
    entries: list[tuple[WeightEntry, float]] = [
        (low_rank(37, 11, rank), 0.7),
        (dense(torch.randn(37, 11)), 1.0),
    ]
    whole = merged(pristine, entries, "out_in", name="w")
    for numbers in (1, 50, 11 * 36):
        monkeypatch.setattr(merging, "_BLOCK_NUMBERS", numbers)
        assert bits.same_bits(merged(pristine, entries, "out_in", name="w"), whole)


def test_an_overflow_is_refused_by_name() -> None:
    pristine = torch.full((2, 2), 6e4, dtype=torch.float16)
    with pytest.raises(ApplyError, match=r"h\.0\.w would overflow torch\.float16"):
        merged(pristine, [(dense(torch.full((2, 2), 6e4)), 1.0)], "out_in", name="h.0.w")


def test_a_base_that_is_not_finite_may_stay_so() -> None:
    pristine = torch.tensor([[float("inf"), 1.0]])
    found = merged(pristine, [(dense(torch.ones(1, 2)), 1.0)], "out_in", name="w")
    assert found.tolist() == [[float("inf"), 2.0]]


def test_a_view_with_strides_is_read_by_its_numbers() -> None:
    pristine = torch.randn(5, 6).T
    entry = low_rank(6, 5, 2)
    assert bits.same_bits(
        merged(pristine, [(entry, 1.0)], "out_in", name="w"),
        merged(pristine.contiguous(), [(entry, 1.0)], "out_in", name="w"),
    )


def test_the_canonical_order_is_that_of_the_ids() -> None:
    model = tiny_model()
    patches = [(random_patch(model, seed=seed), 1.0) for seed in range(5)]
    found = merging.canonical(patches)
    assert [p.id for p, _ in found] == sorted(p.id for p, _ in patches)
    assert merging.canonical(reversed(patches)) == found
