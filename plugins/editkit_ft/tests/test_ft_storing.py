"""Forms in which FT's change is stored; expected errors come from bounds and from a full SVD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from editkit_core import EditContext, EditRequest, Patch
from editkit_core.errors import InvalidParameterError
from editkit_core.models.editable import EditableModel
from editkit_core.numerics.probability import target_probabilities
from editkit_core.patch.apply import apply_patch
from editkit_core.patch.format import DenseEntry, DenseInt8Entry, LowRankEntry
from editkit_core.testing.models import tiny_model
from editkit_core.types import Site
from editkit_ft import editkit_method
from editkit_ft.delta import compute_delta
from editkit_ft.locate import locate
from editkit_ft.params import FtParams
from editkit_ft.storing import stored

SITE = Site(module="m", parameter="m.weight", layer=0)
LONG = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="old Lima")
OTHER = EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru")
PARAMS = FtParams(layers=(1,), steps=4, lr=1e-3, loss_skip=0.0, loss_stop=0.0)
Matrix = np.ndarray[Any, Any]  # Any: element type and shape


def edit(model: EditableModel, *requests: EditRequest, **changes: object) -> Patch:
    params = attrs.evolve(PARAMS, **changes)
    asked, context = requests or (LONG, OTHER), EditContext()
    return compute_delta(model, asked, locate(model, asked, params, context), params, context)


def change(patch: Patch) -> Matrix:
    return np.asarray(patch.weight_entries[0].delta().numpy())


def of_rank(rank: int, shape: tuple[int, int] = (32, 128)) -> Matrix:
    chance = np.random.default_rng(rank)
    made = chance.standard_normal((shape[0], rank)) @ chance.standard_normal((rank, shape[1]))
    return made.astype(np.float32)


def relative(made: Matrix, asked: Matrix) -> float:
    return float(np.linalg.norm(made - asked) / np.linalg.norm(asked))


# -- what is chosen by itself -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 128), (128, 32), (64, 64)])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_a_change_of_low_rank_is_stored_as_factors_that_hold_it(
    shape: tuple[int, int], rank: int
) -> None:
    delta = of_rank(rank, shape)
    kept = stored(SITE, delta, FtParams())
    assert isinstance(kept.entry, LowRankEntry)
    assert kept.entry.rank == rank
    assert kept.error == pytest.approx(relative(kept.entry.delta().numpy(), delta), rel=1e-6)
    assert kept.error <= 1e-6
    assert sum(array.nbytes for array in kept.entry.tensors().values()) < delta.nbytes / 4


@pytest.mark.parametrize("rank", [5, 9, 31])
def test_a_change_of_more_than_an_eighth_of_the_rank_is_stored_in_full(rank: int) -> None:
    delta = of_rank(rank)
    kept = stored(SITE, delta, FtParams())
    assert isinstance(kept.entry, DenseEntry)
    assert np.array_equal(kept.entry.values, delta)
    assert kept.error == 0.0


def test_a_small_full_part_beside_a_large_one_of_low_rank_is_kept() -> None:
    """Parts of the matrix are looked at first; this one shows only in the whole."""
    delta = of_rank(2)
    delta[5, 7] += np.float32(1e-3)
    for row in range(3, 9):
        delta[row, row + 20] += np.float32(0.5)
    assert isinstance(stored(SITE, delta, FtParams()).entry, DenseEntry)


def test_a_change_of_zeros_is_stored() -> None:
    """With several layers one of them may have had nothing to learn."""
    for store in ("auto", "dense", "int8", "low_rank"):
        kept = stored(SITE, np.zeros((16, 32), np.float32), FtParams(store=store))  # type: ignore[arg-type]  # one of the words
        assert (kept.error, kept.largest) == (0.0, 0.0)


def test_adams_change_is_no_product_of_few_factors() -> None:
    (entry,) = edit(tiny_model("gpt2")).entries
    assert isinstance(entry, DenseEntry)


def test_a_bounded_change_is_never_stored_as_factors() -> None:
    kept = stored(SITE, of_rank(1), FtParams(linf=10.0))
    assert isinstance(kept.entry, DenseEntry)


# -- forms that are asked for -----------------------------------------------------------------


def test_low_rank_is_the_closest_of_its_rank_and_the_patch_says_what_it_lost() -> None:
    full = edit(tiny_model("gpt2"), store="dense")
    small = edit(tiny_model("gpt2"), store="low_rank", store_rank=3)
    (entry,) = small.entries
    assert isinstance(entry, LowRankEntry)
    assert entry.rank == 3
    sigma = np.linalg.svd(change(full), compute_uv=False)
    expected = np.sqrt((sigma[3:] ** 2).sum() / (sigma**2).sum())
    assert relative(change(small), change(full)) == pytest.approx(expected, rel=1e-3)
    assert small.header.metrics["store_errors"] == [pytest.approx(expected, rel=1e-2)]
    assert full.header.metrics["store_errors"] == [0.0]


def test_a_rank_above_the_weights_stores_all_of_the_change() -> None:
    small = edit(tiny_model("gpt2"), store="low_rank", store_rank=500)
    (error,) = small.header.metrics["store_errors"]
    assert small.weight_entries[0].rank == 32
    assert error < 1e-6


@pytest.mark.parametrize("linf", [5e-4, 5e-5, 1e-2])
def test_int8_is_off_by_at_most_a_254th_of_the_bound(linf: float) -> None:
    full = edit(tiny_model("gpt2"), linf=linf, lr=0.1, store="dense")
    small = edit(tiny_model("gpt2"), linf=linf, lr=0.1, store="int8")
    assert isinstance(small.entries[0], DenseInt8Entry)
    assert np.abs(change(small) - change(full)).max() <= linf / 254 * (1 + 1e-6)
    (error,) = small.header.metrics["store_errors"]
    assert error == pytest.approx(relative(change(small), change(full)), rel=1e-2)
    assert 0 < error < 0.01


def test_without_a_bound_int8_is_off_by_at_most_a_254th_of_the_largest_number() -> None:
    full, small = (edit(tiny_model("gpt2"), store=store) for store in ("dense", "int8"))
    error = np.abs(change(small) - change(full))
    assert (error <= np.abs(change(full)).max(axis=1, keepdims=True) / 254 * (1 + 1e-6)).all()


@pytest.mark.parametrize("store", ["auto", "dense", "int8"])
@pytest.mark.parametrize("linf", [5e-4, 5e-5, 1e-3, 2e-3, 1 / 3])
def test_the_bound_holds_exactly_in_every_form(store: str, linf: float) -> None:
    patch = edit(tiny_model("gpt2"), linf=linf, lr=1.0, store=store)
    assert np.abs(change(patch)).max() <= linf
    largest = patch.header.metrics["largest_change"]
    assert largest == pytest.approx(np.abs(change(patch)).max(), rel=1e-5)


@pytest.mark.parametrize("store", ["dense", "int8"])
def test_the_bound_around_the_base_holds_in_every_form(store: str) -> None:
    model = tiny_model("gpt2")
    first = edit(model, LONG, lr=0.1, linf=1e-3, store=store)
    with apply_patch(model, first):
        again = edit(model, OTHER, lr=0.1, linf=1e-3, anchor="base", store=store)
    rounding = 1e-7  # weights of about 1 are added in float32
    assert np.abs(change(first) + change(again)).max() <= 1e-3 + rounding
    assert np.abs(change(again)).max() > 1.5e-3


@pytest.mark.parametrize("mode", ["merge", "overlay"])
@pytest.mark.parametrize(("store", "rank"), [("int8", 32), ("low_rank", 8)])
def test_the_edit_holds_in_a_smaller_form(store: str, rank: int, mode: Any) -> None:  # Any: a mode
    model = tiny_model("gpt2")
    before = target_probabilities(model, [LONG, OTHER])
    patch = edit(model, steps=60, lr=3e-3, store=store, store_rank=rank)
    with apply_patch(model, patch, mode=mode):
        after = target_probabilities(model, [LONG, OTHER])
    assert all(new > 20 * old for new, old in zip(after, before, strict=True))


def test_a_file_of_int8_is_about_a_quarter_of_a_full_one(tmp_path: Path) -> None:
    model = tiny_model("gpt2", d=128)
    sizes = {
        store: edit(model, store=store, linf=1e-3).save(tmp_path / store)
        for store in ("dense", "int8")
    }
    assert sizes["int8"] < 0.27 * sizes["dense"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_a_file_gives_the_same_change_back(family: str, tmp_path: Path) -> None:
    for store in ("int8", "low_rank"):
        patch = edit(tiny_model(family), store=store)
        patch.save(tmp_path / store)
        assert np.array_equal(change(Patch.load(tmp_path / store)), change(patch))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"store": "int4"}, "store is 'int4'; it must be one of auto, dense, low_rank, int8"),
        ({"store_rank": 0}, "store_rank is 0"),
        ({"store": "low_rank", "linf": 5e-4}, "store is low_rank and linf is 0.0005"),
    ],
)
def test_a_form_that_does_not_fit_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameterError, match=said):
        FtParams(**values)


def test_every_form_is_declared() -> None:
    emitted = set(editkit_method().emits)
    for store in ("auto", "dense", "int8", "low_rank"):
        patch = edit(tiny_model("gpt2"), store=store)
        assert {entry.kind for entry in patch.entries} <= emitted
