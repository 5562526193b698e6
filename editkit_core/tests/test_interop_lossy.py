"""Truncation of full matrices: the best there is, and measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from editkit_core.api import Editor
from editkit_core.errors import InvalidParameterError
from editkit_core.interop.factors import module_factors
from editkit_core.interop.lora import export_lora
from editkit_core.interop.lossy import Loss, truncate
from editkit_core.interop.measure import as_patch, remeasure
from editkit_core.models.editable import EditableModel
from editkit_core.patch import DenseEntry, Evidence, LowRankEntry, Patch, apply_patch
from editkit_core.patch.fold import fold
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (20, 20)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_truncation_is_that_of_the_singular_value_decomposition(
    shape: tuple[int, int], rank: int
) -> None:
    delta = np.random.default_rng(0).normal(size=shape)
    p, sigma, q = np.linalg.svd(delta, full_matrices=False)
    wanted = (p[:, :rank] * sigma[:rank]) @ q[:rank]
    found = truncate(delta, rank)
    assert found.rank == rank
    np.testing.assert_allclose(found.u @ found.v, wanted, rtol=0, atol=1e-12)


def test_a_matrix_of_small_rank_is_kept_whole() -> None:
    random = np.random.default_rng(0)
    delta = random.normal(size=(12, 2)) @ random.normal(size=(2, 30))
    found = truncate(delta, 5)
    np.testing.assert_allclose(found.u @ found.v, delta, rtol=0, atol=1e-12)


def test_no_more_factors_are_kept_than_a_side_has() -> None:
    assert truncate(np.eye(4), 9).rank == 4


def test_both_factors_have_the_same_size() -> None:
    found = truncate(1e-6 * np.random.default_rng(0).normal(size=(8, 8)), 2)
    assert np.linalg.norm(found.u) == pytest.approx(np.linalg.norm(found.v))


def test_cosine_and_error_follow_from_the_singular_values(tmp_path: Path) -> None:
    model = tiny_model("llama")
    patch = random_patch(model, rank=None)
    done = export_lora([(patch, 1.0)], tmp_path / "adapter", lossy_rank=4)
    (loss,) = done.losses
    sigma = np.linalg.svd(patch.entries[0].delta().numpy(), compute_uv=False)
    kept = (sigma[:4] ** 2).sum() / (sigma**2).sum()
    assert loss.parameter == "model.layers.1.mlp.down_proj.weight"
    assert loss.rank == 4
    assert loss.cosine == pytest.approx(kept**0.5, abs=1e-6)
    assert loss.relative_error == pytest.approx((1 - kept) ** 0.5, abs=1e-6)


def test_a_zero_change_loses_nothing() -> None:
    zero = np.zeros((2, 2))
    loss = Loss.between(zero, zero, parameter="w", rank=1)
    assert (loss.cosine, loss.relative_error) == (1.0, 0.0)


def test_low_rank_patches_beside_a_full_matrix_stay_exact() -> None:
    model = tiny_model("llama")
    dense, low = random_patch(model, rank=None, seed=1), random_patch(model, rank=2, seed=2)
    (both,) = module_factors([(dense, 1.0), (low, 3.0)], lossy_rank=32)
    wanted = dense.entries[0].delta().numpy() + 3 * low.entries[0].delta().numpy()
    assert both.rank == 34
    np.testing.assert_allclose(
        both.u.astype(np.float64) @ both.v.astype(np.float64), wanted, rtol=0, atol=1e-6
    )
    assert both.loss is not None
    assert both.loss.cosine == pytest.approx(1, abs=1e-9)


def test_full_matrices_of_one_weight_are_summed_before_they_are_truncated() -> None:
    model = tiny_model("llama")
    patches = [(random_patch(model, rank=None, seed=seed), 1.0) for seed in (1, 2)]
    (made,) = module_factors(patches, lossy_rank=3)
    assert made.rank == 3


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_that_is_none_is_refused(rank: int) -> None:
    with pytest.raises(InvalidParameterError):
        module_factors([(random_patch(tiny_model("llama"), rank=None), 1.0)], lossy_rank=rank)


# -- measuring again ------------------------------------------------------------------------------


def overpowering(model: EditableModel, rank: int | None) -> Patch:
    """Return a full-matrix patch that forces one answer, its change of rank 1 plus noise."""
    patch = random_patch(model, rank=1, scale=2.0)
    entry = patch.entries[0]
    assert isinstance(entry, LowRankEntry)
    delta = entry.delta().float() + 0.01 * torch.randn(
        entry.shape, generator=torch.Generator().manual_seed(0)
    )
    dense = DenseEntry(site=entry.site, delta=delta)
    return Patch.from_parts(
        entries=[dense if rank is None else entry],
        method=patch.header.method,
        base=patch.header.base,
        edits=patch.header.edits,
        evidence=Evidence(module=entry.site.module, keys=np.ones((1, entry.shape[1]))),
    )


def test_what_was_exported_is_measured_like_the_patch() -> None:
    editor = Editor(tiny_model("llama"))
    patches = [(overpowering(editor.model, None), 1.0)]
    factors = module_factors(patches, lossy_rank=1)
    before = editor.model.state_digest()
    measured = remeasure(editor, patches, factors)
    assert measured is not None
    assert editor.model.state_digest() == before
    names = [(score.metric, score.protocol) for score in measured.exact]
    assert names == [(score.metric, score.protocol) for score in measured.exported]
    assert ("reliability", "tf_token") in names
    edits = patches[0][0].header.edits
    assert measured.exact == editor.evaluate(edits, patches[0][0]).scores()
    assert measured.exported == editor.evaluate(edits, as_patch(patches, factors)).scores()


def test_the_measured_patch_is_the_exported_adapter(tmp_path: Path) -> None:
    model = tiny_model("llama", init_std=0.05)
    patches = [(random_patch(model, rank=None, seed=seed), 0.5) for seed in (1, 2)]
    done = export_lora(patches, tmp_path / "adapter", lossy_rank=2)
    made = as_patch(patches, done.factors)
    weight = model.weight(model.site(1))
    before = weight.double()
    with apply_patch(model, made):
        change = (weight.double() - before).numpy()
    (factors,) = done.factors
    np.testing.assert_allclose(change, factors.u @ factors.v, rtol=0, atol=1e-6)


def test_several_patches_are_measured_together() -> None:
    editor = Editor(tiny_model("llama"))
    patches = [(random_patch(editor.model, rank=None, seed=seed), 0.5) for seed in (1, 2)]
    measured = remeasure(editor, patches, module_factors(patches, lossy_rank=30))
    assert measured is not None
    edits = [edit for patch, _ in patches for edit in patch.header.edits]
    assert measured.exact == editor.evaluate(edits, fold(patches)).scores()


def test_patches_that_name_no_edits_are_not_measured() -> None:
    editor = Editor(tiny_model("llama"))
    made = random_patch(editor.model, rank=None)
    bare = Patch.from_parts(entries=made.entries, method=made.header.method, base=made.header.base)
    assert remeasure(editor, [(bare, 1.0)], module_factors([(bare, 1.0)], lossy_rank=1)) is None
