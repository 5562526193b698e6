"""Presets of the methods that locate and edit: one for each common model, where from, and in range.

The tables of the papers and of their code are written out again here.
"""

from __future__ import annotations

from typing import Any

import pytest

from editkit_alphaedit.info import INFO as ALPHAEDIT
from editkit_core.params import ModelShape, Preset, load_presets, resolve, structure
from editkit_core.types import MethodInfo
from editkit_emmet.info import INFO as EMMET
from editkit_ft.info import INFO as FT
from editkit_kn.info import INFO as KN
from editkit_memit.info import INFO as MEMIT
from editkit_pmet.info import INFO as PMET
from editkit_rome.info import INFO as ROME

METHODS = {info.name: info for info in (ROME, MEMIT, PMET, EMMET, ALPHAEDIT, KN, FT)}
MODELS = {
    "openai-community/gpt2": ("gpt2", 12, 768),
    "openai-community/gpt2-medium": ("gpt2", 24, 1024),
    "openai-community/gpt2-large": ("gpt2", 36, 1280),
    "openai-community/gpt2-xl": ("gpt2", 48, 1600),
    "EleutherAI/gpt-neo-1.3B": ("gpt_neo", 24, 2048),
    "EleutherAI/gpt-neo-2.7B": ("gpt_neo", 32, 2560),
    "EleutherAI/gpt-j-6b": ("gptj", 28, 4096),
    "meta-llama/Llama-2-7b-hf": ("llama", 32, 4096),
    "meta-llama/Llama-2-13b-hf": ("llama", 40, 5120),
    "meta-llama/Meta-Llama-3-8B": ("llama", 32, 4096),
    "meta-llama/Llama-3.1-8B": ("llama", 32, 4096),
    "meta-llama/Llama-3.2-3B": ("llama", 28, 3072),
    "mistralai/Mistral-7B-v0.1": ("mistral", 32, 4096),
    "Qwen/Qwen2-7B": ("qwen2", 28, 3584),
    "Qwen/Qwen2.5-7B": ("qwen2", 28, 3584),
}
SOURCES = ("paper/reference", "ours, tuned on ", "not measured")
DEMO_LAYERS = 6
XL, GPTJ, SMALL = "openai-community/gpt2-xl", "EleutherAI/gpt-j-6b", "meta-llama/Llama-3.2-3B"
MEDIUM, LARGE = "openai-community/gpt2-medium", "openai-community/gpt2-large"
LLAMA2, LLAMA3 = "meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B"
LLAMA31, MISTRAL = "meta-llama/Llama-3.1-8B", "mistralai/Mistral-7B-v0.1"
QWEN2, QWEN25 = "Qwen/Qwen2-7B", "Qwen/Qwen2.5-7B"
GPT_RATE = {"v_lr": 0.5, "v_weight_decay": 0.5, "clamp_norm": 0.75, "kl_factor": 0.0625}
LLAMA_RATE = {"v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm": 4.0, "kl_factor": 0.0625}
PMET_RATE = {"v_lr": 0.5, "v_weight_decay": 0.5, "clamp_norm": 1.0, "kl_factor": 0.0625}


def row(layers: list[int], steps: int, rate: dict[str, float], **more: float) -> dict[str, Any]:
    return {"layers": tuple(layers), "v_steps": steps, **rate, **more}


WINDOW = [4, 5, 6, 7, 8]
# By method and model, or preset name: the values of the references.
TABLE: dict[tuple[str, str], dict[str, Any]] = {
    ("memit", XL): row([13, 14, 15, 16, 17], 20, GPT_RATE, covariance_weight=20000),
    ("memit", GPTJ): row([3, 4, 5, 6, 7, 8], 25, GPT_RATE, covariance_weight=15000),
    ("memit", LLAMA2): row(WINDOW, 25, LLAMA_RATE, covariance_weight=15000),
    ("memit", MISTRAL): row(WINDOW, 25, LLAMA_RATE, covariance_weight=15000),
    ("memit", QWEN2): row(WINDOW, 25, LLAMA_RATE, covariance_weight=15000),
    ("memit", QWEN25): row(WINDOW, 25, LLAMA_RATE, covariance_weight=15000),
    ("pmet", GPTJ): row(
        [3, 4, 5, 6, 7, 8], 30, GPT_RATE | {"v_lr": 0.2, "kl_factor": 1.0}, covariance_weight=6000
    ),
    ("pmet", "gpt-j-6b-easyedit"): row(
        [3, 4, 5, 6, 7, 8], 30, GPT_RATE | {"v_lr": 0.2, "kl_factor": 1.0}, covariance_weight=15000
    ),
    ("pmet", LLAMA2): row(WINDOW, 20, PMET_RATE, covariance_weight=15000),
    ("pmet", SMALL): row(WINDOW, 25, PMET_RATE, covariance_weight=15000),
    ("emmet", XL): row([17], 20, GPT_RATE, covariance_weight=1000, slack=0.1),
    ("emmet", "gpt2-xl-easyedit"): row([17], 20, GPT_RATE, covariance_weight=10000, slack=0.1),
    ("emmet", GPTJ): row([5], 25, GPT_RATE, covariance_weight=1, slack=0.1),
    ("emmet", "gpt-j-6b-easyedit"): row([5], 25, GPT_RATE, covariance_weight=100000, slack=0.1),
    ("emmet", LLAMA2): row([5], 25, LLAMA_RATE, covariance_weight=1, slack=0.1),
    ("emmet", "llama-7b-easyedit"): row([5], 25, LLAMA_RATE, covariance_weight=100000, slack=0.1),
    ("emmet", SMALL): row([5], 25, LLAMA_RATE, covariance_weight=100000, slack=0.1),
    ("alphaedit", XL): row([13, 14, 15, 16, 17], 20, GPT_RATE, null_threshold=0.02, ridge=10),
    ("alphaedit", GPTJ): row([3, 4, 5, 6, 7, 8], 25, GPT_RATE, null_threshold=0.02, ridge=10),
    ("alphaedit", LLAMA3): row(
        WINDOW, 25, GPT_RATE | {"v_lr": 0.1}, null_threshold=0.02, ridge=10
    ),
    ("alphaedit", "llama-3-8b-easyedit"): row(
        WINDOW, 25, GPT_RATE | {"v_lr": 0.1}, null_threshold=0.02, ridge=1
    ),
    ("alphaedit", LLAMA31): row(
        WINDOW, 25, GPT_RATE | {"v_lr": 0.1}, null_threshold=0.02, ridge=10
    ),
    ("alphaedit", QWEN25): row(WINDOW, 25, LLAMA_RATE, null_threshold=0.02, ridge=1),
    ("kn", XL): {"nodes": 20, "threshold_ratio": 0.2, "share": 0.4, "phrasings": "none"},
    ("kn", GPTJ): {"nodes": 20, "threshold_ratio": 0.1, "share": 0.4, "phrasings": "none"},
    ("kn", LLAMA2): {"threshold_ratio": 0.2, "share": 0.4, "phrasings": "none"},
    ("kn", MISTRAL): {"threshold_ratio": 0.2, "share": 0.4, "phrasings": "none"},
    ("ft", MEDIUM): {"layers": (0,), "linf": 2e-3, "objective": "prompt_last"},
    ("ft", LARGE): {"layers": (0,), "linf": 1e-3, "objective": "prompt_last"},
    ("ft", XL): {"layers": (0,), "linf": 5e-4, "objective": "prompt_last"},
    ("ft", "gpt2-xl-ft"): {"layers": (1,), "linf": None, "objective": "prompt_last"},
    ("ft", GPTJ): {"layers": (0,), "linf": 5e-5, "objective": "prompt_last"},
    ("ft", "gpt-j-6b-ft"): {"layers": (21,), "linf": None, "objective": "prompt_last"},
    ("ft", LLAMA2): {"layers": (21,), "linf": None, "objective": "target_new"},
    ("ft", "llama-7b-ft"): {"layers": (21,), "linf": None, "objective": "prompt_last"},
    ("ft", LLAMA3): {"layers": (21,), "linf": None, "objective": "target_new"},
    ("ft", MISTRAL): {"layers": (21,), "linf": 5e-5, "objective": "prompt_last"},
    ("ft", QWEN2): {"layers": (27,), "linf": None, "objective": "target_new"},
    ("ft", QWEN25): {"layers": (27,), "linf": None, "objective": "target_new"},
}  # fmt: skip


def shape(name: str) -> ModelShape:
    family, n_layers, d_model = MODELS[name]
    return ModelShape(name=name, family=family, n_layers=n_layers, d_model=d_model)


def layers_of(params: Any, depth: int) -> tuple[int, ...]:  # Any: each method has its own class
    for name in ("window", "chosen"):
        if hasattr(params, name):
            return tuple(getattr(params, name)(depth))
    if hasattr(params, "layers"):
        return params.layers or tuple(range(depth))  # KN searches all
    return (params.layer,) if params.layer is not None else ()


def depth_of(preset: Preset) -> int | None:
    named = preset.match.name or ""
    if named.startswith(("editkit:", "demo")):
        return DEMO_LAYERS
    return preset.match.n_layers


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_common_model_has_a_preset_of_its_own(method: str, model: str) -> None:
    found = resolve(METHODS[method], shape(model))
    assert found.preset is not None
    assert not found.preset.startswith("any")
    layers = layers_of(found.params, MODELS[model][1])
    assert layers
    assert 0 <= min(layers) <= max(layers) < MODELS[model][1]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_common_model_in_a_folder_has_one_by_its_sides(method: str, model: str) -> None:
    family, n_layers, d_model = MODELS[model]
    local = ModelShape(name="./copy", family=family, n_layers=n_layers, d_model=d_model)
    found = resolve(METHODS[method], local)
    assert found.preset is not None
    assert not found.preset.startswith("any")


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_says_where_from_and_can_be_used(method: str) -> None:
    info = METHODS[method]
    presets = load_presets(info)
    assert len({preset.name for preset in presets}) == len(presets)
    for preset in presets:
        assert preset.source.startswith(SOURCES), preset.name
        params = structure(info.params(), preset.params, owner=preset.name)
        depth = depth_of(preset)
        if depth is not None:
            assert max(layers_of(params, depth)) < depth, preset.name


@pytest.mark.parametrize(("method", "model"), TABLE)
def test_a_preset_from_a_reference_has_its_values(method: str, model: str) -> None:
    info: MethodInfo = METHODS[method]
    found = (
        resolve(info, shape(model)) if model in MODELS else resolve(info, shape(XL), preset=model)
    )
    assert found.source.startswith("paper/reference")
    assert {name: getattr(found.params, name) for name in TABLE[method, model]} == TABLE[
        method, model
    ]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"rome"}))  # its table is with ROME
def test_no_other_preset_claims_a_reference(method: str) -> None:
    known = {
        resolve(METHODS[method], shape(model)).preset if model in MODELS else model
        for owner, model in TABLE
        if owner == method
    } | ({"qwen2-7b", "t5-3b"} if method == "kn" else set())
    claiming = {
        preset.name
        for preset in load_presets(METHODS[method])
        if preset.source.startswith("paper/reference")
    }
    assert claiming <= known


def test_llama_2_and_3_of_the_same_sides_are_told_apart_by_name() -> None:
    rates = [resolve(ALPHAEDIT, shape(model)).params.v_lr for model in (LLAMA2, LLAMA3, LLAMA31)]
    assert rates == [0.5, 0.1, 0.1]
    for info in (MEMIT, PMET, EMMET, KN):
        assert resolve(info, shape(LLAMA2)).source.startswith("paper/reference")
        assert resolve(info, shape(LLAMA3)).source.startswith("not measured")
