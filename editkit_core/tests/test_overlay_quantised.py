"""Patches on a base that torchao quantised to int8: beside the weights, leaving no trace."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

from editkit_core.api import Editor
from editkit_core.errors import ApplyError, BaseMismatchError, UnsupportedModuleError
from editkit_core.models.editable import EditableModel
from editkit_core.models.orientation import sides
from editkit_core.patch import apply_patch, base_fingerprint, bits, check_base
from editkit_core.patch.format import Patch
from editkit_core.patch.verify import verify
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch

FAMILIES = ["gpt_neo", "gptj", "llama", "mistral", "qwen2", "qwen3"]
TOLERANCE = 2e-5  # nat; int8 times float32 in torchao's kernel rounds otherwise than a dense matmul


def quantised(family: str = "llama", seed: int = 0) -> tuple[EditableModel, Patch]:
    """A tiny model in int8, and a patch made for it before."""
    model = tiny_model(family, seed=seed)
    patch = random_patch(model, layers=(0, 2), rank=2)
    quantize_(model.model, Int8WeightOnlyConfig())
    return model, patch


def dequantised(model: EditableModel) -> EditableModel:
    """A copy with every int8 weight as the floats it stands for."""
    plain = copy.deepcopy(model.model)
    for module in plain.modules():
        if isinstance(module, nn.Linear) and type(module.weight.data) is not torch.Tensor:
            module.weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
    return EditableModel.wrap(plain, model.tokenizer)


def logits(model: EditableModel) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.tensor([[5, 9, 17, 30]])
        found: torch.Tensor = model.model(input_ids=ids, use_cache=False).logits.float()
    return found


def saved(path: Path, seed: int = 0) -> tuple[str, Patch]:
    model = tiny_model("llama", seed=seed)
    model.model.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return str(path), random_patch(model, layers=(0, 2), rank=2)


def loaded(folder: str) -> EditableModel:
    model = EditableModel.from_pretrained(folder)
    quantize_(model.model, Int8WeightOnlyConfig())
    return model


@pytest.mark.parametrize("rank", [2, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_the_edit_merged_into_the_dequantised_weights(
    family: str, rank: int | None
) -> None:
    model = tiny_model(family)
    patch = random_patch(model, rank=rank)
    quantize_(model.model, Int8WeightOnlyConfig())
    dense = dequantised(model)
    clean = logits(dense)
    with apply_patch(dense, patch, mode="merge", check_base=False):
        expected = logits(dense)
    assert (expected - clean).abs().max() > 0.1
    with apply_patch(model, patch, check_base=False) as applied:
        assert applied.mode == "overlay"
        assert (logits(model) - expected).abs().max() < TOLERANCE


def test_where_inputs_are_quantised_too_the_change_still_acts_on_the_exact_inputs() -> None:
    model = tiny_model("llama")
    patch = random_patch(model)
    quantize_(model.model, Int8DynamicActivationInt8WeightConfig())
    module = model.module(patch.entries[0].site.module)
    inputs = torch.randn(7, patch.entries[0].shape[1])
    clean = module(inputs)
    with apply_patch(model, patch, check_base=False):
        change = module(inputs) - clean
    expected = inputs.double() @ patch.entries[0].delta().T
    torch.testing.assert_close(change.double(), expected, atol=1e-5, rtol=0)


def test_taking_it_off_leaves_the_same_bits_and_the_same_logits() -> None:
    model, patch = quantised()
    before, answers = model.state_digest(), logits(model)
    applied = apply_patch(model, patch, check_base=False)
    assert not torch.equal(logits(model), answers)
    assert model.state_digest() == before
    applied.revert()
    assert torch.equal(logits(model), answers)
    assert model.state_digest() == before
    assert not any(module._forward_hooks for module in model.model.modules())


def test_the_state_digest_sees_one_changed_integer() -> None:
    model, patch = quantised()
    before = model.state_digest()
    weight = model.parameter(patch.entries[0].site.parameter)
    weight.data.qdata[0, 0] += 1  # type: ignore[attr-defined]  # an Int8Tensor's integers
    assert model.state_digest() != before


def test_merging_is_refused_with_the_reason_and_nothing_changes() -> None:
    model, patch = quantised()
    before = model.state_digest()
    with pytest.raises(ApplyError, match=r"is quantised.*Use mode overlay"):
        apply_patch(model, patch, mode="merge", check_base=False)
    assert model.state_digest() == before
    assert model.ledger.active == ()


def test_auto_says_that_it_is_an_overlay_and_why(caplog: pytest.LogCaptureFixture) -> None:
    model, patch = quantised()
    with caplog.at_level(logging.INFO, logger="editkit"):
        applied = apply_patch(model, patch, check_base=False)
    parameter = patch.entries[0].site.parameter
    assert applied.why.startswith(f"{parameter} is quantised (Int8Tensor) and cannot be written")
    assert [record.getMessage() for record in caplog.records] == [applied.why]


def test_a_gpt2_whose_projections_torchao_leaves_alone_is_merged_into() -> None:
    model = tiny_model("gpt2")  # its MLP is made of Conv1D, and torchao quantises Linear only
    patch = random_patch(model)
    quantize_(model.model, Int8WeightOnlyConfig())
    with apply_patch(model, patch) as applied:
        assert applied.mode == "merge"


def test_two_patches_give_equal_bits_in_either_order() -> None:
    model, _ = quantised()
    dense = tiny_model("llama")
    patches = [random_patch(dense, seed=seed, rank=2) for seed in range(2)]
    seen = []
    for ordered in (patches, patches[::-1]):
        applied = [apply_patch(model, patch, check_base=False) for patch in ordered]
        seen.append(logits(model))
        for one in applied:
            one.revert()
    assert torch.equal(*seen)


def test_its_weight_has_sides_but_is_not_given_out_as_floats() -> None:
    model, patch = quantised()
    site = patch.entries[0].site
    assert sides(model.module(site.module)) == patch.entries[0].shape
    assert not bits.is_plain(model.parameter(site.parameter))
    with pytest.raises(UnsupportedModuleError, match=r"Int8Tensor.*unquantised.*overlay"):
        model.weight(site)


def test_the_files_it_was_loaded_from_answer_for_the_base(tmp_path: Path) -> None:
    folder, patch = saved(tmp_path / "m")
    model = loaded(folder)
    check_base(model, patch)
    names = list(patch.header.base.tensors)
    digests = {name: tensor.sha256 for name, tensor in patch.header.base.tensors.items()}
    found = base_fingerprint(model, names).tensors
    assert {name: tensor.sha256 for name, tensor in found.items()} == digests


def test_a_patch_for_other_files_is_refused(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "m")
    _, other = saved(tmp_path / "other", seed=1)
    with pytest.raises(BaseMismatchError, match="does not fit"):
        apply_patch(loaded(folder), other)


def test_without_files_the_base_cannot_be_told_and_the_message_says_what_to_do() -> None:
    model, patch = quantised()
    elsewhere = EditableModel.wrap(model.model, model.tokenizer)
    with pytest.raises(BaseMismatchError, match=r"cannot be told") as caught:
        apply_patch(elsewhere, patch)
    assert "is quantised (Int8Tensor), and no files to compare" in str(caught.value)
    assert "EditableModel.wrap(model, tokenizer, folder=…)" in str(caught.value)
    assert "check_base=False" in str(caught.value)
    with pytest.raises(BaseMismatchError, match=r"not at hand.*folder=…"):
        base_fingerprint(elsewhere, [patch.entries[0].site.parameter])


def test_naming_the_folder_lets_a_wrapped_model_be_checked(tmp_path: Path) -> None:
    folder, patch = saved(tmp_path / "m")
    model, _ = quantised()
    editor = Editor.wrap(model.model, model.tokenizer, folder=folder)
    with editor.applied(patch) as applied:
        assert applied.mode == "overlay"
        editor.generate("The capital of Norway is", max_new_tokens=2)


def test_naming_the_folder_of_another_model_is_noticed(tmp_path: Path) -> None:
    folder, patch = saved(tmp_path / "m")
    model, _ = quantised(seed=1)
    wrapped = EditableModel.wrap(model.model, model.tokenizer, folder=folder)
    with pytest.raises(BaseMismatchError, match=r"quantised.*of other files"):
        apply_patch(wrapped, patch)


def test_verify_accepts_a_patch_on_a_quantised_base(tmp_path: Path) -> None:
    folder, patch = saved(tmp_path / "m")
    patch.save(tmp_path / "p.editkit.safetensors")
    report = verify(tmp_path / "p.editkit.safetensors", loaded(folder))
    assert report.ok
    assert any("beside the weights" in row.detail for row in report.rows)
