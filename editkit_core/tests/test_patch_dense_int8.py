"""Full matrices as whole numbers, wherever entries are read; expected by plain arithmetic."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from checkpoints import saved, state
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from editkit_core.errors import ExportError, PatchError
from editkit_core.interop.lora import export_lora
from editkit_core.models.editable import EditableModel
from editkit_core.models.orientation import to_out_in
from editkit_core.patch import (
    DenseEntry,
    DenseInt8Entry,
    MethodRef,
    Patch,
    apply_patch,
    base_fingerprint,
    revert_folder,
    write_patched,
)
from editkit_core.patch.describe import describe
from editkit_core.patch.diff import diff
from editkit_core.patch.fold import fold, split
from editkit_core.patch.kinds import BUILTIN_KINDS
from editkit_core.patch.lint import lint
from editkit_core.stack.conflicts import _moved
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patch_bytes import with_array, with_tensor
from editkit_core.types import Site

SITE = Site(module="m", parameter="m.weight", layer=0)
Matrix = np.ndarray[Any, Any]  # Any: element type and shape


def numbers(shape: tuple[int, int] = (3, 6), seed: int = 0) -> Matrix:
    values = np.random.default_rng(seed).standard_normal(shape) * 0.01
    return values.astype(np.float32)


def entry(shape: tuple[int, int] = (3, 6), seed: int = 0, site: Site = SITE) -> DenseInt8Entry:
    return DenseInt8Entry.of(site, numbers(shape, seed))


def decoded(made: DenseInt8Entry) -> Matrix:
    """Say in plain arithmetic what the stored numbers mean."""
    tensors = made.tensors()
    return np.array(
        [[int(c) * float(s) for c in row] for row, s in zip(*tensors.values(), strict=True)]
    )


def patch_of(model: EditableModel, *entries: DenseEntry | DenseInt8Entry) -> Patch:
    return Patch.from_parts(
        entries=entries,
        method=MethodRef(name="test", dist="editkit-core", version="0"),
        base=base_fingerprint(model, [one.site.parameter for one in entries]),
        environment={},
    )


def fitting(model: EditableModel, seed: int = 0, layer: int = 1) -> Patch:
    site = model.site(layer)
    d_out, d_in = model.weight(site).shape
    return patch_of(model, entry((d_out, d_in), seed, site))


def only(patch: Patch) -> DenseInt8Entry:
    (made,) = patch.entries
    assert isinstance(made, DenseInt8Entry)
    return made


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("gpt2")


# -- the entry ------------------------------------------------------------------------------------


def test_the_kind_is_registered() -> None:
    assert BUILTIN_KINDS["weight.dense_int8/1"] is DenseInt8Entry


TINY = 1e-42  # steps near the smallest float32 are coarse
FLOATS = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)


@given(arrays(np.float32, (2, 5), elements=FLOATS))
def test_int8_roundtrip_error(values: Matrix) -> None:
    """No number is off by more than the row's largest over 254, and none grows past the largest."""
    made = decoded(DenseInt8Entry.of(SITE, values))
    most = np.abs(values.astype(np.float64)).max(axis=1, keepdims=True)
    assert (np.abs(made - values) <= most / 254 * (1 + 1e-5) + TINY).all()
    assert (np.abs(made) <= most).all()


@given(arrays(np.float32, (2, 5), elements=FLOATS))
def test_rounded_inward_every_number_stays_between_zero_and_what_it_was(values: Matrix) -> None:
    made = decoded(DenseInt8Entry.of(SITE, values, inward=True))
    assert (np.abs(made) <= np.abs(values.astype(np.float64))).all()
    assert (made * values >= 0).all()
    most = np.abs(values.astype(np.float64)).max(axis=1, keepdims=True)
    assert (np.abs(made - values) <= most / 127 * (1 + 1e-5) + TINY).all()


@pytest.mark.parametrize("bound", [5e-4, 5e-5, 1e-3, 0.1, 1 / 3, 2e-3])
def test_numbers_within_a_bound_are_within_it_when_they_are_read(bound: float) -> None:
    limit = np.float32(bound) if float(np.float32(bound)) <= bound else np.nextafter(
        np.float32(bound), np.float32(0)
    )  # fmt: skip
    values = np.array([[limit, -limit, limit / 3], [limit / 7, 0, -limit / 2]])
    made = DenseInt8Entry.of(SITE, values)
    path = made.side_path(torch.device("cpu"), torch.float32)
    assert float(made.delta().abs().max()) <= bound
    assert float(path(torch.eye(3)).abs().max()) <= bound


def test_a_row_of_zeros_stays_one() -> None:
    made = DenseInt8Entry.of(SITE, [[0.0, 0.0], [1.0, -0.5]])
    assert made.steps[0] == 0
    assert decoded(made)[0].tolist() == [0, 0]


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_the_change_is_each_code_times_its_rows_step(layout: str) -> None:
    made = entry()
    expected = decoded(made).T if layout == "in_out" else decoded(made)
    assert np.array_equal(made.delta(layout).numpy(), expected)


def test_it_is_a_full_matrix_without_factors() -> None:
    made = entry()
    assert (made.rank, made.factors()) == (None, None)
    assert made.norm() == pytest.approx(np.linalg.norm(decoded(made)), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_its_side_path_is_the_product_with_the_full_matrix(dtype: torch.dtype) -> None:
    made = entry()
    x = torch.randn(2, 5, 6, dtype=dtype, generator=torch.Generator().manual_seed(0))
    path = made.side_path(torch.device("cpu"), dtype)
    torch.testing.assert_close(path(x), x @ torch.from_numpy(decoded(made)).to(dtype).T)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codes": np.full((3, 6), -128, np.int8)}, "from -127 to 127, got -128"),
        ({"codes": np.full((3, 6), 300)}, "from -127 to 127, got 300"),
        ({"codes": np.ones((3, 6))}, "must hold int8"),
        ({"codes": np.ones(6, np.int8)}, "2 sides"),
        ({"steps": np.ones(2)}, "one number for each of the 3 rows"),
        ({"steps": np.array([1.0, -1e-9, 1.0])}, "steps must be from 0"),
        ({"steps": np.array([1.0, np.nan, 1.0])}, "must be finite"),
        ({"steps": np.array([1.0, np.inf, 1.0])}, "must be finite"),
        ({"steps": np.array([1.0, 3e38, 1.0])}, r"to 2\.67939e\+36, got"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attrs.evolve(entry(), **changes)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_change_that_is_not_finite_cannot_be_rounded(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        DenseInt8Entry.of(SITE, [[1.0, value]])


# -- a patch of it --------------------------------------------------------------------------------


def test_a_file_gives_the_entry_back(model: EditableModel, tmp_path: Path) -> None:
    patch = fitting(model)
    patch.save(tmp_path / "a")
    loaded = only(Patch.load(tmp_path / "a"))
    assert loaded.codes.dtype == np.int8
    for name, array in only(patch).tensors().items():
        assert np.array_equal(loaded.tensors()[name], array)


def test_a_file_of_it_takes_about_a_quarter_of_the_full_matrix(
    model: EditableModel, tmp_path: Path
) -> None:
    site = model.site(1)
    d_out, d_in = model.weight(site).shape
    full = patch_of(model, DenseEntry(site=site, delta=numbers((d_out, d_in))))
    patch = fitting(model)
    assert (full.nbytes, patch.nbytes) == (4 * d_out * d_in, d_out * d_in + 4 * d_out)
    sizes = [one.save(tmp_path / one.id) for one in (full, patch)]
    headers = [size - one.nbytes for size, one in zip(sizes, (full, patch), strict=True)]
    assert all(header < 4000 for header in headers)


def test_a_hostile_file_is_refused_with_the_entry(model: EditableModel, tmp_path: Path) -> None:
    patch = fitting(model)
    patch.save(tmp_path / "a")
    good = (tmp_path / "a").read_bytes()
    short = np.ones(3, "<f4")
    cases = {
        "from -127 to 127": with_array(good, "0.codes", lambda codes: codes.fill(-128)),
        "steps must be from 0": with_array(good, "0.steps", lambda steps: steps.fill(-1)),
        "must be finite": with_array(good, "0.steps", lambda steps: steps.fill(np.nan)),
        "one number for each": with_tensor(good, "0.steps", short, "F32"),
        "0.codes must be I8": with_tensor(good, "0.codes", np.ones((32, 128), "|u1"), "U8"),
        "0.steps must be F32": with_tensor(good, "0.steps", np.ones(32, "<f8"), "F64"),
    }
    for said, content in cases.items():
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(PatchError, match=f"entry 0.*{said}"):
            Patch.load(tmp_path / "bad")


def test_other_sides_than_the_weights_are_refused(model: EditableModel) -> None:
    with pytest.raises(PatchError, match="weight is"):
        patch_of(model, entry((32, 64), 0, model.site(1)))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("mode", ["merge", "overlay"])
def test_applied_it_computes_what_the_changed_weight_does(family: str, mode: str) -> None:
    model = tiny_model(family)
    patch = fitting(model, 2)
    changed = copy.deepcopy(model.model)
    module = changed.get_submodule(only(patch).site.module)
    to_out_in(module, module.weight.data).add_(torch.from_numpy(decoded(only(patch))).float())
    ids = torch.tensor([[5, 9, 30, 2]])
    before = model.model(ids).logits
    applied = apply_patch(model, patch, mode=mode)
    assert not torch.equal(model.model(ids).logits, before)
    torch.testing.assert_close(model.model(ids).logits, changed(ids).logits)
    applied.revert()
    assert torch.equal(model.model(ids).logits, before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_merge_has_the_bits_of_its_full_matrix(family: str) -> None:
    """Every code times its step is a float64 number without rounding, so the sums are equal."""
    patch = fitting(tiny_model(family), 3)
    weights = []
    for kind in ("int8", "full"):
        model = tiny_model(family)
        site = model.site(1)
        before = model.weight(site).double()
        if kind == "int8":
            apply_patch(model, patch)
            weights.append(model.weight(site))
        else:
            weights.append((before + torch.from_numpy(decoded(only(patch)))).float())
    assert torch.equal(*weights)


def test_a_checkpoint_folder_takes_it_and_gives_it_back(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "gpt2", torch.float32, "1GB")
    model = EditableModel.from_pretrained(str(base))
    before = state(base)
    patch = fitting(model, 4)
    write_patched(base, patch, tmp_path / "edited")
    edited = EditableModel.from_pretrained(str(tmp_path / "edited"))
    site = model.site(1)
    expected = model.weight(site).double() + torch.from_numpy(decoded(only(patch)))
    assert torch.equal(edited.weight(site), expected.float())
    revert_folder(tmp_path / "edited")
    assert state(tmp_path / "edited") == before


# -- its readers ----------------------------------------------------------------------------------


def test_a_description_names_kind_and_size(model: EditableModel) -> None:
    (row,) = describe(fitting(model))["entries"]
    assert (row["kind"], row["rank"], row["shape"]) == ("weight.dense_int8/1", None, [32, 128])
    assert row["bytes"] == 32 * 128 + 32 * 4


def test_lint_finds_no_fault_in_its_form(model: EditableModel) -> None:
    about = {finding.rule for finding in lint(fitting(model)) if "entry" in finding.where}
    assert about <= {"large_change", "large-change"}


def test_a_patch_is_the_same_as_its_full_matrix(model: EditableModel) -> None:
    patch = fitting(model)
    full = DenseEntry(site=only(patch).site, delta=decoded(only(patch)))
    (found,) = diff(patch, patch_of(model, full)).tensors
    assert found.state == "same"
    assert found.ranks == (None, None)


def test_crosstalk_reads_it_as_its_full_matrix() -> None:
    made = entry()
    keys = np.random.default_rng(5).standard_normal((4, 6))
    expected = np.linalg.norm(keys @ decoded(made).T, axis=1)
    np.testing.assert_allclose(_moved([made], keys), expected)


@pytest.mark.parametrize("compress", [False, True])
def test_a_fold_keeps_it_with_its_scale(model: EditableModel, compress: bool) -> None:
    one, two = fitting(model, 1), fitting(model, 2)
    folded = fold([(one, 1.0), (two, -0.5)], compress=compress)
    assert [e.kind for e in folded.entries] == ["weight.dense_int8/1"] * 2
    total = sum(e.delta().numpy() for e in folded.weight_entries)
    expected = decoded(only(one)) - 0.5 * decoded(only(two))
    np.testing.assert_allclose(total, expected, rtol=1e-6, atol=1e-12)


def test_a_fold_is_split_again(model: EditableModel) -> None:
    one, two = fitting(model, 1), fitting(model, 2)
    back = split(fold([(one, 1.0), (two, 1.0)]))
    assert [part.id for part in back] == [one.id, two.id]


def test_a_lora_takes_it_as_any_full_matrix(model: EditableModel, tmp_path: Path) -> None:
    patch = fitting(model)
    with pytest.raises(ExportError, match=r"full matrix \(weight.dense_int8/1\)"):
        export_lora([(patch, 1.0)], tmp_path / "lora")
    done = export_lora([(patch, 1.0)], tmp_path / "lora", lossy_rank=4)
    loss = done.factors[0].loss
    assert loss is not None
    sigma = np.linalg.svd(decoded(only(patch)), compute_uv=False)
    expected = np.sqrt((sigma[4:] ** 2).sum() / (sigma**2).sum())
    assert loss.relative_error == pytest.approx(expected, rel=1e-4)
