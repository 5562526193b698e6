"""Patches as PEFT adapters, compared with the real peft and with dense float64 arithmetic."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from editkit_core.errors import (
    BaseMismatchError,
    ExportError,
    InvalidParameterError,
    OutputExistsError,
    StackConflictError,
    WriteFailedError,
)
from editkit_core.interop.exported import Exported
from editkit_core.interop.factors import Scaled, module_factors
from editkit_core.interop.lora import export_lora
from editkit_core.models.editable import EditableModel
from editkit_core.patch import LowRankEntry, MethodRef, Patch, apply_patch, base_fingerprint
from editkit_core.patch.fold import fold
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch
from editkit_core.types import Site

FAMILIES = ["gpt2", "gpt_neo", "gptj", "llama", "mistral", "qwen2"]
OURS = MethodRef(name="test", dist="editkit-core", version="0")
# peft 0.21 asks transformers 5.23 for a property that the latter has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def model_of(family: str) -> EditableModel:
    return tiny_model(family, init_std=0.05)


def patches_for(model: EditableModel) -> list[Scaled]:
    """Two patches of different ranks that share a weight."""
    one = random_patch(model, layers=(0, 2), rank=1, seed=1)
    two = random_patch(model, layers=(1, 2), rank=3, seed=2)
    return [(one, 1.0), (two, -0.5)]


def with_peft(model: EditableModel, folder: Path) -> torch.nn.Module:
    from peft import PeftModel

    made: torch.nn.Module = PeftModel.from_pretrained(copy.deepcopy(model.model), folder)
    return made.eval()


def tokens(model: EditableModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.vocab, (4, 24), generator=generator)


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids).logits
    return found


def densely(model: EditableModel, patches: list[Scaled]) -> torch.nn.Module:
    """Return the model in float64 with every change added as a full matrix."""
    made: torch.nn.Module = copy.deepcopy(model.model).double()
    for patch, scale in patches:
        for entry in patch.entries:
            layout = patch.header.base.tensors[entry.site.parameter].layout
            made.get_parameter(entry.site.parameter).data += scale * entry.delta(layout)
    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 2])
def test_peft_computes_what_our_own_apply_computes(tmp_path: Path, family: str, count: int) -> None:
    model = model_of(family)
    patches = patches_for(model)[:count]
    export_lora(patches, tmp_path / "adapter")
    ids = tokens(model)
    base = logits(model.model, ids)
    found = logits(with_peft(model, tmp_path / "adapter"), ids)
    assert (found - base).abs().max() > 0.1
    for mode in ("merge", "overlay"):
        with apply_patch(model, fold(patches), mode=mode):
            wanted = logits(model.model, ids)
        assert (found - wanted).abs().max() <= 2e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float64_the_adapter_is_the_sum_of_the_dense_changes(
    tmp_path: Path, family: str
) -> None:
    model = model_of(family)
    patches = patches_for(model)
    export_lora(patches, tmp_path / "adapter")
    found = logits(with_peft(model, tmp_path / "adapter").double(), tokens(model))
    wanted = logits(densely(model, patches), tokens(model))
    assert (found - wanted).abs().max() <= 1e-12


def test_a_square_conv1d_is_not_transposed(tmp_path: Path) -> None:
    model = tiny_model("gpt2", d_mlp=32, init_std=0.05)
    patches = patches_for(model)
    export_lora(patches, tmp_path / "adapter")
    found = logits(with_peft(model, tmp_path / "adapter").double(), tokens(model))
    wanted = logits(densely(model, patches), tokens(model))
    assert (found - wanted).abs().max() <= 1e-12


def test_every_module_has_the_largest_total_rank_padded_with_zeros(tmp_path: Path) -> None:
    patches = patches_for(model_of("llama"))
    done = export_lora(patches, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == done.rank == 4  # layer 2: 1 + 3
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.{}.mlp.down_proj.lora_{}.weight"
    assert {n: tuple(t.shape) for n, t in tensors.items()} == {
        name.format(layer, side): (4, 128) if side == "A" else (32, 4)
        for layer in range(3)
        for side in "AB"
    }
    used = [int(tensors[name.format(layer, "A")].any(dim=1).sum()) for layer in range(3)]
    assert used == [1, 3, 4]


@pytest.mark.parametrize("family", FAMILIES)
def test_target_modules_are_full_paths_and_only_conv1d_is_fan_in_fan_out(
    tmp_path: Path, family: str
) -> None:
    model = model_of(family)
    export_lora(patches_for(model), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == [model.family.mlp_down(layer) for layer in range(3)]
    assert config["fan_in_fan_out"] is (family == "gpt2")


def test_the_folder_holds_two_files_that_name_no_folder_of_this_machine(tmp_path: Path) -> None:
    model = model_of("gpt2")
    model.name = str(tmp_path / "secret" / "models" / "tiny")
    done = export_lora([(random_patch(model), 1.0)], tmp_path / "adapter")
    files = sorted((tmp_path / "adapter").iterdir())
    assert [file.name for file in files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert done.nbytes == sum(file.stat().st_size for file in files)
    assert all(b"secret" not in file.read_bytes() for file in files)


def test_the_order_of_the_patches_does_not_change_a_byte(tmp_path: Path) -> None:
    patches = patches_for(model_of("llama"))
    export_lora(patches, tmp_path / "a")
    export_lora(patches[::-1], tmp_path / "b")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        digests = {hashlib.sha256((tmp_path / d / name).read_bytes()).digest() for d in "ab"}
        assert len(digests) == 1


# -- refusals -------------------------------------------------------------------------------------


def test_a_full_matrix_is_refused_with_the_remedy(tmp_path: Path) -> None:
    patch = random_patch(model_of("llama"), rank=None)
    with pytest.raises(ExportError, match=r"weight\.dense/1.*--lossy --rank"):
        export_lora([(patch, 1.0)], tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


@attrs.frozen(eq=False, kw_only=True)
class NeuronEntry:
    """An entry that is no change of a weight."""

    kind: ClassVar[str] = "ffn.neurons/1"
    level: ClassVar[str] = "module"
    dtypes: ClassVar[dict[str, str]] = {"w": "F32"}
    site: Site
    w: Any
    shape: tuple[int, int]

    def tensors(self) -> dict[str, Any]:
        return {"w": self.w}


def test_a_kind_that_is_no_weight_change_is_refused(tmp_path: Path) -> None:
    model = model_of("llama")
    site = model.site(1)
    entry: Any = NeuronEntry(site=site, w=np.ones((1, 1), np.float32), shape=(32, 128))
    patch = Patch.from_parts(
        entries=[entry], method=OURS, base=base_fingerprint(model, [site.parameter])
    )
    with pytest.raises(ExportError, match=r"ffn\.neurons/1.*changes no weight"):
        export_lora([(patch, 1.0)], tmp_path / "adapter")


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_tied_weight_is_refused(tmp_path: Path, family: str) -> None:
    model = model_of(family)
    site = Site(module="lm_head", parameter="lm_head.weight", role="head", layer=2)
    entry = LowRankEntry(site=site, u=np.ones((model.vocab, 1)), v=np.ones((1, 32)))
    patch = Patch.from_parts(
        entries=[entry], method=OURS, base=base_fingerprint(model, [site.parameter])
    )
    with pytest.raises(ExportError, match=r"lm_head\.weight shares its tensor"):
        export_lora([(patch, 1.0)], tmp_path / "adapter")


def test_patches_of_different_bases_are_refused(tmp_path: Path) -> None:
    patches = [(random_patch(tiny_model("llama", seed=seed)), 1.0) for seed in (0, 1)]
    with pytest.raises(BaseMismatchError):
        export_lora(patches, tmp_path / "adapter")


def test_a_patch_given_twice_is_refused(tmp_path: Path) -> None:
    patch = random_patch(model_of("llama"))
    with pytest.raises(StackConflictError, match="twice"):
        export_lora([(patch, 1.0), (patch, 1.0)], tmp_path / "adapter")


def test_patches_that_exclude_one_another_are_refused(tmp_path: Path) -> None:
    model = model_of("llama")
    one = random_patch(model, seed=1)
    two = Patch.from_parts(
        entries=one.entries, method=OURS, base=one.header.base, conflicts=[one.header.id]
    )
    with pytest.raises(StackConflictError, match="must not be used with"):
        export_lora([(one, 1.0), (two, 1.0)], tmp_path / "adapter")


def test_no_patches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError):
        export_lora([], tmp_path / "adapter")


def test_a_scale_that_overflows_float32_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="smaller scale"):
        export_lora([(random_patch(model_of("llama")), 1e300)], tmp_path / "adapter")


def test_a_linear_and_a_conv1d_in_one_adapter_are_refused(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.model.config.tie_word_embeddings = False
    model.model.lm_head.weight = torch.nn.Parameter(model.model.lm_head.weight.clone())
    one = random_patch(model)
    site = Site(module="lm_head", parameter="lm_head.weight", role="head", layer=2)
    entry = LowRankEntry(site=site, u=np.ones((model.vocab, 1)), v=np.ones((1, 32)))
    two = Patch.from_parts(
        entries=[entry], method=OURS, base=base_fingerprint(model, [site.parameter])
    )
    with pytest.raises(ExportError, match="fan_in_fan_out"):
        export_lora([(one, 1.0), (two, 1.0)], tmp_path / "adapter")


# -- files ----------------------------------------------------------------------------------------


def export_one(out: Path, **options: Any) -> Exported:
    return export_lora([(random_patch(model_of("llama")), 1.0)], out, **options)


def test_a_dry_run_writes_nothing_and_says_the_size(tmp_path: Path) -> None:
    dry = export_one(tmp_path / "adapter", dry_run=True)
    assert not list(tmp_path.iterdir())
    assert dry.nbytes == export_one(tmp_path / "adapter").nbytes


def test_an_existing_adapter_is_replaced_only_with_force(tmp_path: Path) -> None:
    export_one(tmp_path / "adapter")
    (tmp_path / "adapter" / "old").write_text("")
    with pytest.raises(OutputExistsError):
        export_one(tmp_path / "adapter")
    export_one(tmp_path / "adapter", force=True)
    assert len(list((tmp_path / "adapter").iterdir())) == 2


def test_a_folder_that_is_no_adapter_is_not_replaced_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.md").write_text("years of work")
    with pytest.raises(OutputExistsError, match="something else"):
        export_one(tmp_path / "thesis", force=True)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("editkit_core.interop.lora.write_file", full)
    with pytest.raises(WriteFailedError):
        export_one(tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


# -- factors --------------------------------------------------------------------------------------


def test_factors_multiply_to_the_scaled_sum_of_the_deltas() -> None:
    patches = patches_for(model_of("gpt2"))
    for made in module_factors(patches):
        wanted = sum(
            scale * entry.delta().numpy()
            for patch, scale in patches
            for entry in patch.entries
            if entry.site.module == made.site.module
        )
        product = made.u.astype(np.float64) @ made.v.astype(np.float64)
        np.testing.assert_allclose(product, wanted, rtol=0, atol=1e-15)


def test_a_scale_is_baked_in_with_one_rounding() -> None:
    patch = random_patch(model_of("llama"))
    (made,) = module_factors([(patch, math.pi)])
    u, _ = patch.entries[0].factors() or pytest.fail("it has factors")
    np.testing.assert_array_equal(made.u, (math.pi * u.astype(np.float64)).astype(np.float32))
