"""What merging into half precision keeps of a change, and what ``auto`` does about it."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from editkit_core.errors import ApplyError, PatchShapeError
from editkit_core.models.editable import EditableModel
from editkit_core.patch import apply_patch, bits
from editkit_core.patch.fidelity import merge_cosine
from editkit_core.patch.kinds import WeightEntry
from editkit_core.patch.kinds.dense import DenseEntry
from editkit_core.patch.kinds.low_rank import LowRankEntry
from editkit_core.patch.modes import LEAST_COSINE, choose_mode
from editkit_core.patch.overlay import Overlay
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch
from editkit_core.types import Site

HALVES = [torch.bfloat16, torch.float16]
SITE = Site(layer=0, module="m", parameter="m.weight")
SMALL, LARGE = 3e-4, 0.3  # random_patch scales: one bfloat16 loses, one it keeps


def model_of(dtype: torch.dtype = torch.bfloat16, family: str = "llama") -> EditableModel:
    model = tiny_model(family)
    model.model.to(dtype)
    return model


def cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    a, b = left.double().flatten().numpy(), right.double().flatten().numpy()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def entry(d_out: int, d_in: int, rank: int | None, size: float) -> WeightEntry:
    chance = torch.Generator().manual_seed(d_out)
    if rank is None:
        return DenseEntry(site=SITE, delta=size * torch.randn(d_out, d_in, generator=chance))
    u = size * torch.randn(d_out, rank, generator=chance)
    return LowRankEntry(site=SITE, u=u, v=torch.randn(rank, d_in, generator=chance))


# -- the figure --


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("size", [1e-2, 1e-4])
def test_it_is_the_cosine_of_whole_matrices_in_float64(
    dtype: torch.dtype, layout: str, size: float
) -> None:
    d_out, d_in = 300, 500  # more than one block
    weight = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(1)).to(dtype)
    summands = [(entry(d_out, d_in, 2, size), 0.5), (entry(d_out, d_in, None, size), -2.0)]
    delta = sum(scale * one.delta() for one, scale in summands)
    assert isinstance(delta, torch.Tensor)
    realised = (weight.double() + delta).to(dtype).double() - weight.double()
    stored = weight if layout == "out_in" else weight.T.contiguous()
    assert merge_cosine(stored, summands, layout) == pytest.approx(
        cosine(delta, realised), abs=1e-12
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_a_change_of_one_whole_step_of_every_number_is_kept_wholly(dtype: torch.dtype) -> None:
    weight = torch.full((8, 8), 1.0, dtype=dtype)
    change = DenseEntry(site=SITE, delta=torch.full((8, 8), torch.finfo(dtype).eps))
    assert merge_cosine(weight, [(change, 1.0)]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_change_below_half_a_step_of_every_number_is_lost_wholly(dtype: torch.dtype) -> None:
    weight = torch.full((8, 8), 1.0, dtype=dtype)
    change = DenseEntry(site=SITE, delta=torch.full((8, 8), 0.49 * torch.finfo(dtype).eps))
    assert merge_cosine(weight, [(change, 1.0)]) == 0


def test_no_change_at_all_loses_nothing() -> None:
    assert merge_cosine(torch.ones(8, 8).half(), [(entry(8, 8, 1, 1.0), 0.0)]) == 1


def test_a_change_that_overflows_keeps_nothing() -> None:
    assert merge_cosine(torch.ones(8, 8).half(), [(entry(8, 8, 1, 1e9), 1.0)]) == 0


def test_a_low_rank_change_is_never_held_as_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(LowRankEntry, "delta")
    assert merge_cosine(torch.ones(300, 500).half(), [(entry(300, 500, 2, 1.0), 1.0)]) > 0.99


# -- the choice --


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_small_edit_of_a_bfloat16_model_goes_beside_the_weights(family: str) -> None:
    model = model_of(family=family)
    patch = random_patch(model, scale=SMALL)
    name = patch.entries[0].site.parameter
    layout = patch.header.base.tensors[name].layout
    weight, delta = model.parameter(name).double(), patch.entries[0].delta(layout)
    lost = cosine(delta, (weight + delta).bfloat16().double() - weight)
    assert lost < LEAST_COSINE
    with apply_patch(model, patch) as applied:
        assert applied.mode == "overlay"
        assert applied.why.startswith(f"Merged into the bfloat16 weight {name}, ")
        assert f"with cosine {lost:.3f} (at least 0.95 is wanted)" in applied.why


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_large_edit_of_a_bfloat16_model_is_merged_and_nothing_is_said(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(family=family)
    with caplog.at_level(logging.INFO, logger="editkit"):
        applied = apply_patch(model, random_patch(model, scale=LARGE))
    assert (applied.mode, applied.why, caplog.records) == ("merge", "", [])


def test_float16_keeps_an_edit_that_bfloat16_loses() -> None:
    patch_on = {dtype: random_patch(model_of(dtype), scale=5e-3) for dtype in HALVES}
    chosen = [choose_mode(model_of(dtype), patch_on[dtype]).mode for dtype in HALVES]
    assert chosen == ["overlay", "merge"]


def test_the_user_is_warned_with_the_figure(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of()
    with apply_patch(model, random_patch(model, scale=SMALL)) as applied:
        pass
    said = [(r.name, r.levelname, r.getMessage()) for r in caplog.records]
    assert said == [("editkit", "WARNING", applied.why)]


@pytest.mark.parametrize("scale", [1e-9, SMALL, LARGE])
def test_a_float32_model_is_merged_into_as_ever(scale: float) -> None:
    model = model_of(torch.float32)
    patch = random_patch(model, scale=scale)
    with apply_patch(model, patch, mode="merge"):
        expected = model.state_digest()
    with apply_patch(model, patch) as applied:
        assert (applied.mode, applied.why) == ("merge", "")
        assert model.state_digest() == expected


def test_who_asks_for_a_merge_gets_it() -> None:
    model = model_of()
    patch = random_patch(model, scale=SMALL)
    before = model.state_digest()
    with apply_patch(model, patch, mode="merge") as applied:
        assert (applied.mode, applied.why) == ("merge", "")
        assert model.state_digest() != before


def test_one_entry_that_would_be_lost_is_enough() -> None:
    model = model_of()
    large, small = random_patch(model, layers=(0,)), random_patch(model, layers=(1,), scale=SMALL)
    both = random_patch(model, layers=(0, 1))
    for patch, mode in ((large, "merge"), (both, "merge"), (small, "overlay")):
        assert choose_mode(model, patch).mode == mode
    model.parameter(small.entries[0].site.parameter).mul_(1e4)  # now layer 1 has coarser steps
    choice = choose_mode(model, both)
    assert choice.mode == "overlay"
    assert small.entries[0].site.parameter in choice.why


def test_other_patches_on_the_model_make_no_difference() -> None:
    model = model_of()
    patch = random_patch(model, scale=SMALL)
    alone = choose_mode(model, patch)
    with apply_patch(model, random_patch(model, seed=5)) as other:
        assert other.mode == "merge"
        assert choose_mode(model, patch) == alone


def test_the_scale_counts() -> None:
    model = model_of()
    patch = random_patch(model, scale=SMALL)
    assert choose_mode(model, patch, scale=1.0).mode == "overlay"
    assert choose_mode(model, patch, scale=LARGE / SMALL).mode == "merge"


def test_entries_of_one_weight_are_measured_together() -> None:
    model = model_of()
    patch = random_patch(model, layers=(1, 1), scale=LARGE)
    opposite = LowRankEntry(
        site=patch.entries[0].site,
        u=-patch.entries[0].tensors()["u"],
        v=patch.entries[0].tensors()["v"],
    )
    weight = model.parameter(opposite.site.parameter)
    assert merge_cosine(weight, [(patch.entries[0], 1.0), (opposite, 1.0)]) == 1
    assert choose_mode(model, patch).mode == "merge"


def test_a_patch_for_another_shape_is_still_refused_as_that() -> None:
    patch = random_patch(tiny_model("llama", d=48), scale=SMALL)
    with pytest.raises(PatchShapeError, match="does not fit"):
        apply_patch(model_of(), patch, check_base=False)


def test_an_unknown_mode_is_refused() -> None:
    model = model_of()
    with pytest.raises(ApplyError, match="no mode 'add'"):
        apply_patch(model, random_patch(model), mode="add")


def test_taking_the_automatic_overlay_off_leaves_no_trace() -> None:
    model = model_of()
    before = model.state_digest()
    with apply_patch(model, random_patch(model, scale=SMALL)):
        assert model.state_digest() == before
    assert model.state_digest() == before
    assert not any(module._forward_hooks for module in model.model.modules())


# -- what it is for: the figures of docs/explanation/arithmetic.md --


@pytest.mark.parametrize(
    ("relative_norm", "weights", "merged", "overlaid"),
    [(3e-2, 0.999, 1.0, 1.0), (1e-2, 0.988, 1.0, 1.0), (3e-3, 0.92, 0.995, 1.0),
     (1e-3, 0.73, 0.96, 1.0), (3e-4, 0.45, 0.87, 0.995)],
)  # fmt: skip
def test_the_output_at_an_edits_key_keeps_its_change_beside_the_weights(
    relative_norm: float, weights: float, merged: float, overlaid: float
) -> None:
    """A rank-one change U V of a 768 × 3072 bfloat16 weight, at inputs along its key V."""
    chance = torch.Generator().manual_seed(0)
    module = nn.Linear(3072, 768, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    module.weight.copy_(0.02 * torch.randn(768, 3072, generator=chance))
    u = torch.randn(768, 1, generator=chance)
    key = torch.randn(1, 3072, generator=chance)
    u *= relative_norm * module.weight.float().norm() / (u.norm() * key.norm())
    change = LowRankEntry(site=SITE, u=u, v=key)
    inputs = (torch.linspace(0.5, 1.5, 64)[:, None] * key).bfloat16()
    wanted, clean = inputs.double() @ change.delta().T, module(inputs).double()

    side = Overlay(module, [(change, 1.0)])
    beside = cosine(module(inputs).double() - clean, wanted)
    side.remove()
    assert bits.same_bits(module(inputs), clean.bfloat16())
    kept = merge_cosine(module.weight, [(change, 1.0)])
    module.weight.copy_(module.weight.double() + change.delta())
    inside = cosine(module(inputs).double() - clean, wanted)
    assert kept == pytest.approx(weights, abs=0.01)
    assert inside == pytest.approx(merged, abs=0.01)
    assert beside == pytest.approx(overlaid, abs=0.002)
