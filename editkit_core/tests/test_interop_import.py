"""PEFT adapters as patches: what the real peft saves, and what is refused."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from editkit_core.errors import (
    EditkitError,
    ExportError,
    InputNotFoundError,
    ModuleNotFoundInModelError,
    PatchFormatError,
    PatchShapeError,
    UnsupportedModuleError,
)
from editkit_core.interop.adapter import read_adapter
from editkit_core.interop.lora import export_lora
from editkit_core.interop.lora_import import import_lora
from editkit_core.models.editable import EditableModel
from editkit_core.patch import Patch, apply_patch
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch

FAMILIES = ["gpt2", "gpt_neo", "gptj", "llama", "mistral", "qwen2"]
ATTENTION = {"gpt2": "c_attn", "gpt_neo": "q_proj"}
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DOWN = "base_model.model.model.layers.1.mlp.down_proj"
# peft 0.21 asks transformers 5.23 for a property that the latter has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def train_with_peft(model: EditableModel, folder: Path, **options: Any) -> torch.nn.Module:
    """Save an adapter of random numbers as peft does, and return what peft then loads."""
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(**({"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 7} | options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = get_peft_model(copy.deepcopy(model.model), config)
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape)
    made.save_pretrained(folder, save_embedding_layers=False)  # else it asks the hub
    loaded: torch.nn.Module = PeftModel.from_pretrained(copy.deepcopy(model.model), folder)
    return loaded.eval()


def targets(model: EditableModel) -> dict[str, Any]:
    family = model.family.name
    down = model.family.mlp_down(0).rpartition(".")[2]
    return {
        "target_modules": [down, ATTENTION.get(family, "q_proj")],
        "fan_in_fan_out": family == "gpt2",
    }


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids).logits
    return found


def check_equal(model: EditableModel, adapted: torch.nn.Module, patch: Patch) -> None:
    ids = torch.randint(0, model.vocab, (4, 24), generator=torch.Generator().manual_seed(0))
    base, wanted = logits(model.model, ids), logits(adapted, ids)
    assert (wanted - base).abs().max() > 0.05
    with apply_patch(model, patch):
        assert (logits(model.model, ids) - wanted).abs().max() <= 2e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_patch_does_what_pefts_adapter_does(tmp_path: Path, family: str) -> None:
    model = tiny_model(family, init_std=0.05)
    adapted = train_with_peft(model, tmp_path / "adapter", **targets(model))
    check_equal(model, adapted, import_lora(model, tmp_path / "adapter"))


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5}},
        {"alpha_pattern": {"down_proj": 3}},
        {"alpha_pattern": {r"layers\.[01]\.mlp\.down_proj": 3, "down_proj": 5}},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 9}, "use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"layers_to_transform": [1]},
        {"target_modules": "all-linear"},
    ],
)
def test_ranks_alphas_and_scaling_are_read_as_peft_reads_them(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model = tiny_model("llama", init_std=0.05)
    adapted = train_with_peft(model, tmp_path / "adapter", **(targets(model) | options))
    check_equal(model, adapted, import_lora(model, tmp_path / "adapter"))


def test_the_patch_is_fingerprinted_on_the_base_and_names_the_adapter(tmp_path: Path) -> None:
    model = tiny_model("llama")
    train_with_peft(model, tmp_path / "adapter", **targets(model))
    patch = import_lora(model, tmp_path / "adapter", name="style")
    touched = {entry.site.parameter for entry in patch.entries}
    assert set(patch.header.base.tensors) == touched
    assert patch.header.name == "style"
    assert patch.header.method.name == "lora"
    path = tmp_path / "patch.editkit.safetensors"
    patch.save(path)
    assert Patch.load(path).header == patch.header


def test_sites_say_layer_and_role(tmp_path: Path) -> None:
    model = tiny_model("llama")
    train_with_peft(
        model, tmp_path / "adapter", target_modules=["q_proj", "o_proj", "down_proj", "up_proj"]
    )
    sites = {e.site.module: e.site for e in import_lora(model, tmp_path / "adapter").entries}
    assert sites["model.layers.1.mlp.down_proj"] == model.site(1)
    assert (
        sites["model.layers.2.mlp.up_proj"].role,
        sites["model.layers.2.mlp.up_proj"].layer,
    ) == (
        "mlp",
        2,
    )
    assert sites["model.layers.0.self_attn.q_proj"].role == "attention"
    assert sites["model.layers.0.self_attn.o_proj"] == model.site(0, role="attn_out")


def test_an_exported_patch_comes_back_with_the_same_factors(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    patch = random_patch(model, layers=(0, 2), rank=2)
    wide = random_patch(model, layers=(1,), rank=5)  # so that the others are padded
    export_lora([(patch, 1.0), (wide, 1.0)], tmp_path / "adapter")
    back = {e.site.module: e for e in import_lora(model, tmp_path / "adapter").entries}
    for entry in (*patch.entries, *wide.entries):
        u, v = entry.factors() or pytest.fail("it has factors")
        found = back[entry.site.module].factors()
        assert found is not None
        np.testing.assert_array_equal(found[0], u)
        np.testing.assert_array_equal(found[1], v)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_factors_of_every_float_type_are_read_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = adapter(tmp_path)
    tensors = {name: t.to(dtype) for name, t in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    (product,) = read_adapter(folder).modules.values()
    wanted = tensors[f"{DOWN}.lora_A.weight"].double().numpy()
    np.testing.assert_array_equal(product.v, wanted)


# -- refusals -------------------------------------------------------------------------------------


def adapter(tmp_path: Path) -> Path:
    """A plain adapter of one module."""
    folder = tmp_path / "adapter"
    export_lora([(random_patch(tiny_model("llama"), rank=2), 1.0)], folder)
    return folder


def configure(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"trainable_token_indices": [1]}, "embeddings"),
        ({"target_parameters": ["experts.w"]}, "not a module's weight"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"alora_invocation_tokens": [1]}, "certain tokens"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "base's own weights"),
        ({"init_lora_weights": "olora"}, "base's own weights"),
        ({"a_setting_of_next_year": {"on": True}}, "a_setting_of_next_year"),
        ({"alpha_pattern": {"(a|a)*b": 3}}, "forever"),
        ({"alpha_pattern": {".*.*.*.*b": 3}}, "forever"),
    ],
)
def test_what_is_no_plain_lora_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    folder = configure(adapter(tmp_path), **changes)
    with pytest.raises(ExportError, match=why):
        read_adapter(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"target_modules": ["embed_tokens", "down_proj"]},
        {"trainable_token_indices": [3]},
    ],
)
def test_what_the_real_peft_saves_of_other_kinds_is_refused(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model = tiny_model("llama")
    train_with_peft(model, tmp_path / "adapter", **(targets(model) | options))
    with pytest.raises(ExportError):
        import_lora(model, tmp_path / "adapter")


def test_a_setting_that_is_off_does_not_matter(tmp_path: Path) -> None:
    folder = configure(adapter(tmp_path), a_setting_of_next_year=None, use_dora=False)
    assert len(read_adapter(folder).modules) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 0},
        {"r": True},
        {"r": "4"},
        {"lora_alpha": None},
        {"lora_alpha": True},
        {"rank_pattern": ["q_proj"]},
        {"rank_pattern": {"q_proj": 0}},
        {"alpha_pattern": {"q_proj": "3"}},
        {"alpha_pattern": {"[": 3}},
    ],
)
def test_settings_of_wrong_types_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = configure(adapter(tmp_path), **changes)
    with pytest.raises(PatchFormatError):
        read_adapter(folder)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b'{"r": 1, "r": 2}', b'{"r": NaN}', b"\xff", b" " * (1024**2 + 1)]
)
def test_a_malformed_configuration_is_refused(tmp_path: Path, text: bytes) -> None:
    folder = adapter(tmp_path)
    (folder / CONFIG).write_bytes(text)
    with pytest.raises(PatchFormatError):
        read_adapter(folder)


Change = Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]
A, B = f"{DOWN}.lora_A.weight", f"{DOWN}.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda t: {A: t[A]}, "no lora_B"),
        (lambda t: {B: t[B]}, "no lora_A"),
        (lambda t: t | {A: t[A][:1].clone()}, "rank"),
        (lambda t: t | {A: t[A].T.contiguous()}, "rank"),
        (lambda t: t | {A: t[A].int()}, "dtype I32"),
        (lambda t: t | {A: t[A] * float("nan")}, "not finite"),
        (lambda t: t | {A: t[A] * float("inf")}, "not finite"),
        (lambda t: t | {A: t[A][0].clone()}, "two sides"),
        (lambda t: t | {"weight": t[A].clone()}, "name no LoRA"),
        (lambda t: t | {A.replace("down_proj", "../x"): t[A].clone()}, "name no LoRA"),
        (lambda t: t | {A.replace("lora_A", "lora_C"): t[A].clone()}, "name no LoRA"),
        (lambda t: t | {A.removeprefix("base_model.model."): t[A].clone()}, "name no LoRA"),
        (lambda t: t | {A.replace("weight", "default.weight"): t[A].clone()}, "name no LoRA"),
    ],
)
def test_malformed_weights_are_refused_saying_where(
    tmp_path: Path, change: Change, where: str
) -> None:
    folder = adapter(tmp_path)
    save_file(dict(change(load_file(folder / WEIGHTS))), folder / WEIGHTS)
    with pytest.raises(PatchFormatError, match=where):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        (f"{DOWN}.lora_embedding_A", (2, 4), "embedding"),
        (f"{DOWN}.lora_magnitude_vector.weight", (4,), "DoRA"),
        (f"{DOWN}.lora_B.bias", (4,), "bias"),
        ("base_model.model.lm_head.modules_to_save.weight", (4, 4), "whole modules"),
        ("base_model.model.model.embed_tokens.weight", (4, 4), "whole modules"),
        ("base_model.model.model.embed_tokens.base_layer.weight", (4, 4), "whole modules"),
        (A.replace("down_proj", "conv"), (2, 4, 3, 3), "convolution"),
    ],
)
def test_weights_of_other_kinds_are_refused_whatever_the_settings_say(
    tmp_path: Path, name: str, shape: tuple[int, ...], why: str
) -> None:
    folder = adapter(tmp_path)
    save_file(load_file(folder / WEIGHTS) | {name: torch.ones(shape)}, folder / WEIGHTS)
    with pytest.raises(ExportError, match=why):
        read_adapter(folder)


def test_a_truncated_weights_file_is_refused_at_every_length(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    data = (folder / WEIGHTS).read_bytes()
    for length in range(0, len(data), 7):
        (folder / WEIGHTS).write_bytes(data[:length])
        with pytest.raises(PatchFormatError):
            read_adapter(folder)


def test_flipped_bits_are_refused_or_give_finite_numbers(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    data = (folder / WEIGHTS).read_bytes()
    random = np.random.default_rng(0)
    for position in random.integers(0, len(data), 500):
        changed = bytearray(data)
        changed[position] ^= 1 << int(random.integers(8))
        (folder / WEIGHTS).write_bytes(changed)
        try:
            found = read_adapter(folder)
        except EditkitError:
            continue
        assert all(
            np.isfinite(p.u).all() and np.isfinite(p.v).all() for p in found.modules.values()
        )


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ExportError, match="pickle"):
        read_adapter(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = adapter(tmp_path)
    (folder / name).unlink()
    with pytest.raises(InputNotFoundError, match=name):
        read_adapter(folder)


def test_a_pattern_made_to_take_forever_does_not(tmp_path: Path) -> None:
    folder = configure(adapter(tmp_path), alpha_pattern={"[a-z_.0-9]*[a-z_.0-9]*x": 3})
    name = "a." * 150 + "y"
    tensors = load_file(folder / WEIGHTS)
    long = {n.replace(DOWN, f"base_model.model.{name}"): t for n, t in tensors.items()}
    save_file(long, folder / WEIGHTS)
    start = time.perf_counter()
    read_adapter(folder)
    assert time.perf_counter() - start < 1


def test_an_untrained_adapter_is_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {B: torch.zeros_like(tensors[B])}, folder / WEIGHTS)
    with pytest.raises(ExportError, match="changes nothing"):
        read_adapter(folder)


# -- the model ------------------------------------------------------------------------------------


def rename(folder: Path, module: str) -> Path:
    tensors = load_file(folder / WEIGHTS)
    prefix = f"base_model.model.{module}"
    save_file({n.replace(DOWN, prefix): t for n, t in tensors.items()}, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("model.layers.7.mlp.down_proj", ModuleNotFoundInModelError),
        ("model.layers.1.mlp.up_proj", PatchShapeError),
        ("model.layers.1.input_layernorm", UnsupportedModuleError),
        ("model.embed_tokens", UnsupportedModuleError),
    ],
)
def test_an_adapter_that_does_not_fit_the_model_is_refused(
    tmp_path: Path, module: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        import_lora(tiny_model("llama"), rename(adapter(tmp_path), module))


def test_an_adapter_of_a_tied_head_is_refused(tmp_path: Path) -> None:
    model = tiny_model("qwen2", d_mlp=32)
    train_with_peft(model, tmp_path / "adapter", target_modules=["q_proj"])
    folder = tmp_path / "adapter"
    name = "base_model.model.lm_head.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(4, 32), name.format("B"): torch.ones(model.vocab, 4)},
        folder / WEIGHTS,
    )
    with pytest.raises(ExportError, match="shares its tensor"):
        import_lora(model, folder)
