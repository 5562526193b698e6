"""Patches on models that accelerate keeps on the CPU's memory or on disk, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import remove_hook_from_submodules

from editkit_core.errors import ApplyError, BaseMismatchError, UnsupportedModelError
from editkit_core.models.editable import EditableModel
from editkit_core.patch import apply_patch, base_fingerprint, bits, check_base
from editkit_core.patch.verify import verify
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch

TOLERANCE = 1e-5  # nat, float32: U (V x) beside W x against (W + U V) x
Place = Literal["cpu", "disk"]
PLACES: list[Place] = ["cpu", "disk"]


def offloaded(folder: Path, place: Place, family: str = "llama", seed: int = 0) -> EditableModel:
    model = tiny_model(family, seed=seed)
    offload(model, folder, place)
    return model


def offload(model: EditableModel, folder: Path, place: Place) -> None:
    if place == "cpu":
        cpu_offload(model.model, torch.device("cpu"))
    else:
        disk_offload(model.model, str(folder), torch.device("cpu"))


def logits(model: EditableModel) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.tensor([[5, 9, 17, 30]])
        found: torch.Tensor = model.model(input_ids=ids, use_cache=False).logits.float()
    return found


@pytest.mark.parametrize("rank", [2, None])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gptj", "llama", "qwen2"])
@pytest.mark.parametrize("place", PLACES)
def test_the_logits_are_those_of_the_edit_merged_in_memory(
    tmp_path: Path, place: Place, family: str, rank: int | None
) -> None:
    dense = tiny_model(family)
    patch = random_patch(dense, layers=(0, 2), rank=rank)
    with apply_patch(dense, patch, mode="merge"):
        expected = logits(dense)
    assert (expected - logits(dense)).abs().max() > 0.1
    model = offloaded(tmp_path, place, family)
    with apply_patch(model, patch) as applied:
        assert applied.mode == "overlay"
        assert "is offloaded and cannot be written" in applied.why
        assert (logits(model) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("place", PLACES)
def test_taking_it_off_leaves_the_same_bits_and_the_same_logits(
    tmp_path: Path, place: Place
) -> None:
    model = offloaded(tmp_path, place)
    before, answers = model.state_digest(), logits(model)
    applied = apply_patch(model, random_patch(tiny_model("llama")))
    assert not torch.equal(logits(model), answers)
    assert model.state_digest() == before
    applied.revert()
    assert torch.equal(logits(model), answers)
    assert model.state_digest() == before
    assert not any(module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize("place", PLACES)
def test_merging_is_refused_with_the_reason_and_nothing_changes(
    tmp_path: Path, place: Place
) -> None:
    model = offloaded(tmp_path, place)
    before = model.state_digest()
    with pytest.raises(ApplyError, match=r"is offloaded.*Use mode overlay"):
        apply_patch(model, random_patch(tiny_model("llama")), mode="merge")
    assert model.state_digest() == before
    assert model.ledger.active == ()


@pytest.mark.parametrize("place", PLACES)
def test_the_state_digest_is_that_of_the_model_in_memory(tmp_path: Path, place: Place) -> None:
    assert offloaded(tmp_path, place).state_digest() == tiny_model("llama").state_digest()


@pytest.mark.parametrize("place", PLACES)
def test_the_base_is_checked_by_what_accelerate_holds_without_any_files(
    tmp_path: Path, place: Place
) -> None:
    dense = tiny_model("llama")
    patch, other = random_patch(dense), random_patch(tiny_model("llama", seed=1))
    model = offloaded(tmp_path, place)
    check_base(model, patch)
    with pytest.raises(BaseMismatchError, match="does not fit"):
        check_base(model, other)
    names = list(patch.header.base.tensors)
    assert base_fingerprint(model, names).tensors == base_fingerprint(dense, names).tensors


def test_reading_a_weight_leaves_it_offloaded(tmp_path: Path) -> None:
    model, dense = offloaded(tmp_path, "disk", "gpt2"), tiny_model("gpt2")
    site = model.site(1)
    assert torch.equal(model.weight(site), dense.weight(site))
    assert model.parameter(site.parameter).is_meta
    assert not bits.is_plain(model.parameter(site.parameter))


def test_writing_to_a_weight_that_was_read_does_not_write_the_model(tmp_path: Path) -> None:
    model = offloaded(tmp_path, "cpu")
    before = model.state_digest()
    model.weight(model.site(1)).zero_()
    assert model.state_digest() == before


def test_a_weight_that_something_else_offloaded_is_refused() -> None:
    model = tiny_model("llama")
    module = model.module(model.site(1).module)
    module.weight = torch.nn.Parameter(torch.empty(32, 128, device="meta"), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="not by accelerate"):
        model.weight(model.site(1))


@pytest.mark.parametrize("place", PLACES)
def test_text_is_generated_as_from_memory(tmp_path: Path, place: Place) -> None:
    dense, model = tiny_model("llama"), offloaded(tmp_path, place)
    patch = random_patch(dense)
    with apply_patch(dense, patch):
        expected = dense.generate(["The capital of Norway is"], max_new_tokens=4)
    with apply_patch(model, patch):
        assert model.device == torch.device("cpu")
        assert model.generate(["The capital of Norway is"], max_new_tokens=4) == expected


def test_an_overlay_that_was_there_before_outlives_offloading_and_coming_back(
    tmp_path: Path,
) -> None:
    model = tiny_model("llama")
    answers = logits(model)
    applied = apply_patch(model, random_patch(model), mode="overlay")
    expected = logits(model)
    offload(model, tmp_path, "cpu")
    assert torch.equal(logits(model), expected)
    remove_hook_from_submodules(model.model)
    assert torch.equal(logits(model), expected)
    applied.revert()
    assert torch.equal(logits(model), answers)


def test_a_device_map_with_layers_on_disk_takes_overlays(tmp_path: Path) -> None:
    dense = tiny_model("llama")
    dense.model.save_pretrained(tmp_path)
    dense.tokenizer.save_pretrained(tmp_path)
    patch = random_patch(dense, layers=(0, 1))
    with apply_patch(dense, patch, mode="merge"):
        expected = logits(dense)
    rest = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu"}
    layers = {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    model = EditableModel.from_pretrained(
        str(tmp_path), dtype="float32", device_map={**rest, **layers, "lm_head": "cpu"}
    )
    with apply_patch(model, patch) as applied:
        assert applied.why.startswith("model.layers.1.mlp.down_proj.weight is offloaded")
        assert (logits(model) - expected).abs().max() < TOLERANCE


def test_verify_accepts_a_patch_on_an_offloaded_model(tmp_path: Path) -> None:
    random_patch(tiny_model("llama")).save(tmp_path / "p.editkit.safetensors")
    report = verify(tmp_path / "p.editkit.safetensors", offloaded(tmp_path, "cpu"))
    assert report.ok
    assert any("beside the weights" in row.detail for row in report.rows)
