"""Entries of a few columns, wherever entries are read; dense arithmetic says what is expected."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from editkit_core.errors import PatchError
from editkit_core.interop.factors import module_factors
from editkit_core.interop.lora import export_lora
from editkit_core.models.editable import EditableModel
from editkit_core.models.orientation import to_out_in
from editkit_core.patch import (
    ColumnsEntry,
    DenseEntry,
    LowRankEntry,
    MethodRef,
    Patch,
    apply_patch,
    base_fingerprint,
)
from editkit_core.patch.describe import describe
from editkit_core.patch.diff import diff
from editkit_core.patch.fold import fold, split
from editkit_core.patch.kinds import BUILTIN_KINDS
from editkit_core.patch.lint import lint
from editkit_core.patch.merging import Summed
from editkit_core.stack.conflicts import _moved
from editkit_core.testing.models import tiny_model
from editkit_core.types import Site

SITE = Site(module="m", parameter="m.weight", layer=0)


def entry(
    columns: tuple[int, ...] = (1, 4),
    shape: tuple[int, int] = (3, 6),
    seed: int = 0,
    site: Site = SITE,
) -> ColumnsEntry:
    values = np.random.default_rng(seed).standard_normal((shape[0], len(columns)))
    return ColumnsEntry(site=site, columns=columns, values=values, d_in=shape[1])


def dense(made: ColumnsEntry) -> np.ndarray[Any, Any]:  # Any: element type and shape
    full = np.zeros(made.shape)
    for place, number in enumerate(made.columns):
        full[:, number] = made.values[:, place]
    return full


def patch_of(model: EditableModel, *entries: ColumnsEntry) -> Patch:
    return Patch.from_parts(
        entries=entries,
        method=MethodRef(name="test", dist="editkit-core", version="0"),
        base=base_fingerprint(model, [one.site.parameter for one in entries]),
        environment={},
    )


def fitting(model: EditableModel, columns: tuple[int, ...], seed: int, layer: int = 1) -> Patch:
    site = model.site(layer)
    d_out, d_in = model.weight(site).shape
    return patch_of(model, entry(columns, (d_out, d_in), seed, site))


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("gpt2")


# -- the entry ------------------------------------------------------------------------------------


def test_the_kind_is_registered() -> None:
    assert BUILTIN_KINDS["weight.cols/1"] is ColumnsEntry


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_the_change_is_zero_outside_its_columns(layout: str) -> None:
    made = entry()
    expected = dense(made).T if layout == "in_out" else dense(made)
    assert np.array_equal(made.delta(layout).numpy(), expected)


def test_its_product_of_factors_is_the_change() -> None:
    made = entry()
    u, v = made.factors()
    assert np.array_equal(u.astype(np.float64) @ v.astype(np.float64), dense(made))
    assert made.rank == 2


def test_its_norm_is_that_of_the_full_matrix() -> None:
    assert entry().norm() == pytest.approx(np.linalg.norm(dense(entry())), rel=1e-12)


def test_its_side_path_is_the_product_with_the_full_matrix() -> None:
    made = entry()
    x = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = made.side_path(torch.device("cpu"), torch.float64)
    torch.testing.assert_close(path(x), x @ torch.from_numpy(dense(made)).T)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"columns": [4, 1]}, "must rise"),
        ({"columns": [1, 1]}, "must rise"),
        ({"columns": [-1, 1]}, "from 0 to 5"),
        ({"columns": [1, 6]}, "from 0 to 5"),
        ({"columns": [1]}, "one column for each of the 1"),
        ({"columns": [1.0, 2.0]}, "must hold int64"),
        ({"values": np.full((3, 2), np.nan)}, "must be finite"),
        ({"d_in": 1 << 40}, "at most 16777216"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attrs.evolve(entry(), **changes)


@pytest.mark.parametrize("width", [[5, 6], [5]])
def test_a_stored_width_that_does_not_fit_is_refused(width: list[int]) -> None:
    tensors = {**entry((1, 5)).tensors(), "d_in": np.array(width)}
    with pytest.raises(ValueError, match=r"d_in must be one number|from 0 to 4"):
        ColumnsEntry.from_tensors(SITE, tensors)


# -- a patch of it --------------------------------------------------------------------------------


def test_a_file_gives_the_entry_back(model: EditableModel, tmp_path: Path) -> None:
    patch = fitting(model, (3, 100), 1)
    patch.save(tmp_path / "a.editkit.safetensors")
    (loaded,) = Patch.load(tmp_path / "a.editkit.safetensors").entries
    assert isinstance(loaded, ColumnsEntry)
    assert loaded.columns.tolist() == [3, 100]
    assert np.array_equal(loaded.values, patch.entries[0].tensors()["values"])
    assert loaded.shape == (32, 128)


def test_another_number_of_columns_than_the_base_has_is_refused(model: EditableModel) -> None:
    site = model.site(1)
    with pytest.raises(PatchError, match="weight is"):
        patch_of(model, entry((3,), (32, 64), 0, site))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("mode", ["merge", "overlay"])
def test_applied_it_computes_what_the_changed_weight_does(family: str, mode: str) -> None:
    model = tiny_model(family)
    patch = fitting(model, (0, 7, 127), 2)
    made = patch.entries[0]
    assert isinstance(made, ColumnsEntry)
    changed = copy.deepcopy(model.model)
    module = changed.get_submodule(made.site.module)
    to_out_in(module, module.weight.data).add_(torch.from_numpy(dense(made)).float())
    ids = torch.tensor([[5, 9, 30, 2]])
    before = model.model(ids).logits
    applied = apply_patch(model, patch, mode=mode)
    torch.testing.assert_close(model.model(ids).logits, changed(ids).logits)
    applied.revert()
    assert torch.equal(model.model(ids).logits, before)


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_taking_a_column_away_leaves_exact_zeros(layout: str) -> None:
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
    made = ColumnsEntry(site=SITE, columns=[2, 5], values=-weight[:, [2, 5]].numpy(), d_in=6)
    expected = weight.clone()
    expected[:, [2, 5]] = 0.0
    if layout == "in_out":
        weight, expected = weight.T, expected.T
    total = weight.double().clone()
    Summed([(made, 1.0)], layout).add_to(total, 0, len(total))
    assert torch.equal(total, expected.double())


def test_a_lora_holds_it_exactly_with_a_rank_for_each_column(
    model: EditableModel, tmp_path: Path
) -> None:
    patch = fitting(model, (3, 9, 100), 4)
    (factors,) = module_factors([(patch, -0.5)])
    made = patch.entries[0]
    assert isinstance(made, ColumnsEntry)
    assert factors.rank == 3
    assert np.array_equal(factors.u.astype(np.float64) @ factors.v, -0.5 * dense(made))
    assert export_lora([(patch, 1.0)], tmp_path / "lora").rank == 3


# -- its readers ----------------------------------------------------------------------------------


def test_a_description_names_kind_rank_and_size(model: EditableModel) -> None:
    (row,) = describe(fitting(model, (3, 100), 1))["entries"]
    assert (row["kind"], row["rank"], row["shape"]) == ("weight.cols/1", 2, [32, 128])
    assert row["bytes"] == 2 * 8 + 2 * 32 * 4 + 8


def test_columns_of_one_direction_are_no_fault(model: EditableModel) -> None:
    """As low-rank factors they would take more room, so nothing is to be mended."""
    site = model.site(1)
    values = np.outer(np.arange(1.0, 33.0), [1.0, 2.0, 3.0])
    patch = patch_of(model, ColumnsEntry(site=site, columns=[1, 2, 3], values=values, d_in=128))
    assert "unused-rank" not in {found.rule.replace("_", "-") for found in lint(patch)}


def test_a_patch_is_the_same_as_its_full_matrix(model: EditableModel) -> None:
    patch = fitting(model, (3, 100), 1)
    made = patch.entries[0]
    assert isinstance(made, ColumnsEntry)
    full = DenseEntry(site=made.site, delta=dense(made))
    other = Patch.from_parts(
        entries=[full], method=patch.header.method, base=patch.header.base, environment={}
    )
    (found,) = diff(patch, other).tensors
    assert found.state == "same"
    assert found.ranks == (2, None)


def test_crosstalk_reads_it_as_its_full_matrix(model: EditableModel) -> None:
    made = entry()
    keys = np.random.default_rng(5).standard_normal((4, 6))
    expected = np.linalg.norm(keys @ dense(made).T, axis=1)
    np.testing.assert_allclose(_moved([made], keys), expected)


def test_a_fold_keeps_columns_and_is_split_again(model: EditableModel) -> None:
    one, two = fitting(model, (3, 100), 1), fitting(model, (3, 5), 2)
    folded = fold([(one, 1.0), (two, -0.5)])
    assert [e.kind for e in folded.entries] == ["weight.cols/1"] * 2
    total = sum(e.delta().numpy() for e in folded.weight_entries)
    np.testing.assert_allclose(total, dense(one.entries[0]) - 0.5 * dense(two.entries[0]))  # type: ignore[arg-type]  # made so
    back = split(fold([(one, 1.0), (two, 1.0)]))
    assert [part.id for part in back] == [one.id, two.id]


def test_a_compressed_fold_has_each_column_once(model: EditableModel) -> None:
    one, two = fitting(model, (3, 100), 1), fitting(model, (3, 5), 2)
    (made,) = fold([(one, 1.0), (two, 1.0)], compress=True).entries
    assert isinstance(made, ColumnsEntry)
    assert made.columns.tolist() == [3, 5, 100]
    expected = dense(one.entries[0]) + dense(two.entries[0])  # type: ignore[arg-type]  # made so
    np.testing.assert_allclose(dense(made), expected, rtol=1e-6)


def test_columns_and_factors_of_one_weight_add_up(model: EditableModel) -> None:
    patch = fitting(model, (3, 100), 1)
    site = patch.entries[0].site
    generator = np.random.default_rng(6)
    factors = LowRankEntry(
        site=site, u=generator.standard_normal((32, 2)), v=generator.standard_normal((2, 128))
    )
    total = torch.zeros(128, 32, dtype=torch.float64)
    Summed([(patch.weight_entries[0], 2.0), (factors, 1.0)], "in_out").add_to(total, 0, 128)
    expected = 2.0 * patch.weight_entries[0].delta("in_out") + factors.delta("in_out")
    torch.testing.assert_close(total, expected)
