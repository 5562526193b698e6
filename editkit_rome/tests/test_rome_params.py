"""ROME's parameters, presets and description."""

from __future__ import annotations

import subprocess
import sys

import attrs
import pytest

from editkit_core.errors import InvalidParameterError, UnknownParameterError
from editkit_core.params import ModelShape, choose_preset, load_presets, resolve, structure
from editkit_core.testing.models import tiny_model
from editkit_rome import editkit_method
from editkit_rome.locate import layer_of
from editkit_rome.params import RomeParams

INFO = editkit_method()


def test_importing_the_method_does_not_import_torch() -> None:
    code = (
        "import sys, editkit_rome; info = editkit_rome.editkit_method(); info.params(); "
        "info.presets(); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_parameter_is_described_with_its_source() -> None:
    text = RomeParams.__doc__ or ""
    section = text[text.index("Attributes:") :]
    names = [field.name for field in attrs.fields(RomeParams)]
    for name, following in zip(names, [*names[1:], None], strict=True):
        start = section.index(f"        {name}: ")
        end = section.index(f"        {following}: ") if following else len(section)
        assert "Source: " in section[start:end], name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer", -1), ("layer_fraction", 1.5), ("variant", "s-rome"), ("fact_token", "first"),
        ("key_from", "subject"), ("v_insertion", "all"),
        ("v_steps", 0), ("v_lr", 0.0), ("v_lr", float("nan")), ("v_lr_mode", "auto"),
        ("v_weight_decay", -1.0), ("clamp_norm", 0.0), ("clamp_mode", "site"),
        ("loss_stop", -0.1), ("kl_factor", float("inf")), ("kl_prompts", ("no slot",)),
        ("kl_prompts", ("{} {}",)), ("kl_position", "last"), ("essence_samples", -1),
        ("essence_length", 0), ("covariance", "yes"), ("covariance_ridge", -1.0),
        ("contexts", ((0, 3),)), ("contexts", ((5,),)), ("context_seed", -1),
        ("max_rel_norm", 0.0),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidParameterError, match=name):
        RomeParams(**{name: value})  # type: ignore[arg-type]  # wrong on purpose


def test_an_unknown_name_is_refused_with_the_closest() -> None:
    with pytest.raises(UnknownParameterError, match="Did you mean 'clamp_norm'"):
        structure(RomeParams, {"clamp_nrom": 4}, owner="rome")


def test_plain_values_from_a_file_are_understood() -> None:
    params = structure(
        RomeParams,
        {"layer": 3, "contexts": [[5, 2]], "kl_prompts": ["{} was"], "v_lr": 1},
        owner="rome",
    )
    assert params.contexts == ((5, 2),)
    assert params.kl_prompts == ("{} was",)
    assert params.v_lr == 1.0


def test_presets_are_valid_and_say_where_they_come_from() -> None:
    for preset in load_presets(INFO):
        structure(RomeParams, preset.params, owner=preset.name)
        assert preset.source.startswith(("paper/reference", "ours, tuned on", "not measured"))


# The table of the papers and their code, written out again.
TABLE = {
    ("gpt2", 24, 1024): ("gpt2-medium", 8, 20, 0.5, 0.5, 3, "required"),
    ("gpt2", 36, 1280): ("gpt2-large", 12, 20, 0.5, 0.5, 4, "required"),
    ("gpt2", 48, 1600): ("gpt2-xl", 17, 20, 0.5, 0.5, 4, "required"),
    ("gptj", 28, 4096): ("gpt-j-6b", 5, 20, 0.5, 0.5, 4, "required"),
    ("llama", 32, 4096): ("llama-7b", 5, 25, 0.5, 1e-3, 4, "identity"),
    ("mistral", 32, 4096): ("mistral-7b", 5, 25, 0.5, 1e-3, 4, "identity"),
    ("qwen2", 28, 3584): ("qwen2-7b", 5, 25, 0.5, 1e-3, 4, "identity"),
}


@pytest.mark.parametrize("shape", TABLE)
def test_paper_presets_have_the_papers_values(shape: tuple[str, int, int]) -> None:
    family, n_layers, d_model = shape
    name, layer, steps, rate, decay, clamp, covariance = TABLE[shape]
    resolved = resolve(
        INFO, ModelShape(name="some/model", family=family, n_layers=n_layers, d_model=d_model)
    )
    assert resolved.preset == name
    params = resolved.params
    assert (params.layer, params.v_steps, params.v_lr) == (layer, steps, rate)
    assert (params.v_weight_decay, params.clamp_norm) == (decay, clamp)
    assert (params.v_lr_mode, params.clamp_mode, params.covariance) == (
        "absolute", "value", covariance,
    )  # fmt: skip
    assert (params.kl_factor, params.kl_prompts) == (0.0625, ("{} is a",))
    assert (params.variant, params.essence_samples) == ("r-rome", 0)
    assert (params.v_insertion, params.key_from) == ("token", "prompt")


@pytest.mark.parametrize(
    ("name", "family", "layer"), [("demo", "gpt2", 0), ("demo-llama", "llama", 1)]
)
def test_a_demo_model_has_a_preset_by_its_name(name: str, family: str, layer: int) -> None:
    resolved = resolve(
        INFO, ModelShape(name=f"editkit:{name}", family=family, n_layers=6, d_model=256)
    )
    assert (resolved.preset, resolved.params.layer) == (name, layer)
    assert (resolved.params.v_steps, resolved.params.key_from) == (35, "both")


@pytest.mark.parametrize(
    "family", ["gpt2", "gpt_neo", "gptj", "llama", "mistral", "qwen2", "qwen3"]
)
def test_every_family_has_a_preset_for_any_size(family: str) -> None:
    shape = ModelShape(name="x", family=family, n_layers=7, d_model=48)
    preset = choose_preset(load_presets(INFO), shape)
    assert preset is not None
    assert preset.params.get("v_lr_mode") == "relative"


@pytest.mark.parametrize(
    ("n_layers", "fraction", "layer"),
    [(5, 1 / 6, 1), (6, 1 / 3, 2), (3, 1.0, 2), (4, 0.0, 0), (6, 1 / 6, 1)],
)
def test_a_layer_by_share_of_depth_is_the_nearest_one(
    n_layers: int, fraction: float, layer: int
) -> None:
    model = tiny_model("gpt2", n_layers=n_layers)
    assert layer_of(model, RomeParams(layer_fraction=fraction)) == layer


def test_a_layer_given_wins_over_the_share_of_depth() -> None:
    assert layer_of(tiny_model("gpt2"), RomeParams(layer=0, layer_fraction=1.0)) == 0
