"""GRACE's parameters, presets, description, and where it gates."""

from __future__ import annotations

import subprocess
import sys

import attrs
import pytest

from editkit_core.errors import (
    InvalidParameterError,
    InvalidRequestError,
    LayerOutOfRangeError,
    UnknownParameterError,
    UnsupportedModelError,
)
from editkit_core.params import ModelShape, choose_preset, load_presets, resolve, structure
from editkit_core.testing.models import TINY_FAMILIES, tiny_model
from editkit_core.types import EditContext, EditRequest
from editkit_grace import editkit_method
from editkit_grace.locate import layer_of, locate, site_of
from editkit_grace.params import GraceParams

INFO = editkit_method()
NORWAY = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima")


def test_importing_the_method_does_not_import_torch() -> None:
    code = (
        "import sys, editkit_grace; info = editkit_grace.editkit_method(); info.params(); "
        "info.presets(); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_parameter_is_described_with_its_source() -> None:
    text = GraceParams.__doc__ or ""
    section = text[text.index("Attributes:") :]
    names = [field.name for field in attrs.fields(GraceParams)]
    for name, following in zip(names, [*names[1:], None], strict=True):
        start = section.index(f"        {name}: ")
        end = section.index(f"        {following}: ") if following else len(section)
        assert "Source: " in section[start:end], name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer", -1), ("layer_fraction", 1.5), ("stack", "both"), ("eps", 0.0), ("eps", -1.0),
        ("eps", float("nan")), ("eps_mode", "auto"), ("lr", 0.0), ("lr", float("inf")),
        ("lr_mode", "auto"), ("steps", 0), ("init", "hot"), ("replacement", "replace_first"),
        ("expand", "union"), ("early_stop_loss", 0.0),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidParameterError, match=name):
        GraceParams(**{name: value})  # type: ignore[arg-type]  # wrong on purpose


def test_an_unknown_name_is_refused_with_the_closest() -> None:
    with pytest.raises(UnknownParameterError, match="Did you mean 'replacement'"):
        structure(GraceParams, {"replacment": "replace_all"}, owner="grace")


def test_presets_are_valid_and_say_where_they_come_from() -> None:
    for preset in load_presets(INFO):
        structure(GraceParams, preset.params, owner=preset.name)
        assert preset.source.startswith(("paper/reference", "ours, tuned on", "not measured"))


# The reference's table, written out again.
TABLE = {
    ("gpt2", 48, 1600): ("gpt2-xl", 35, "c_fc", 200),
    ("gptj", 28, 4096): ("gpt-j-6b", 25, "fc_out", 200),
    ("llama", 32, 4096): ("llama-7b", 27, "down_proj", 50),
    ("qwen2", 28, 3584): ("qwen2.5-7b", 18, "down_proj", 50),
}


@pytest.mark.parametrize("shape", TABLE)
def test_reference_presets_have_the_references_values(shape: tuple[str, int, int]) -> None:
    family, n_layers, d_model = shape
    name, layer, projection, steps = TABLE[shape]
    resolved = resolve(
        INFO, ModelShape(name="some/model", family=family, n_layers=n_layers, d_model=d_model)
    )
    assert resolved.preset == name
    params = resolved.params
    assert (params.layer, params.projection, params.steps) == (layer, projection, steps)
    assert (params.eps, params.eps_mode) == (1.0, "absolute")
    assert (params.lr, params.lr_mode) == (1.0, "absolute")
    assert (params.init, params.expand, params.replacement) == (
        "cold", "coverage", "replace_last",
    )  # fmt: skip
    assert params.early_stop_loss is None
    assert params.only_if_wrong


@pytest.mark.parametrize("name", ["demo", "demo-llama", "demo-t5"])
def test_a_demo_models_default_is_the_tight_preset(name: str) -> None:
    shape = ModelShape(name=f"editkit:{name}", family="gpt2", n_layers=6, d_model=224)
    tight, wide = resolve(INFO, shape), resolve(INFO, shape, preset=f"{name}-wide")
    assert tight.preset == name
    assert tight.params.eps < wide.params.eps
    assert attrs.evolve(tight.params, eps=wide.params.eps) == wide.params


def test_a_model_without_a_preset_gets_the_defaults() -> None:
    shape = ModelShape(name="x", family="mistral", n_layers=7, d_model=48)
    assert choose_preset(load_presets(INFO), shape) is None
    assert resolve(INFO, shape).params == GraceParams()


# -- where it gates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_layers", "fraction", "layer"),
    [(8, 0.75, 6), (6, 0.75, 4), (3, 1.0, 1), (1, 0.75, 0), (4, 0.0, 0), (48, 0.75, 36)],
)
def test_a_layer_by_share_of_depth_leaves_a_block_above(
    n_layers: int, fraction: float, layer: int
) -> None:
    model = tiny_model("gpt2", n_layers=n_layers, d=16)
    assert layer_of(model, GraceParams(layer_fraction=fraction)) == layer


def test_the_encoders_depth_is_its_own() -> None:
    model = tiny_model("t5", n_layers=4)  # its encoder has one block more
    assert layer_of(model, GraceParams(layer_fraction=0.75, stack="encoder")) == 3
    assert layer_of(model, GraceParams(layer_fraction=0.5, stack="decoder")) == 2


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_the_down_projection_is_gated_by_default(family: str) -> None:
    model = tiny_model(family)
    site = site_of(model, GraceParams(layer=1))
    assert site.module == model.family.mlp_down(1)
    assert (site.role, site.token, site.layer) == ("mlp_down", "last", 1)


def test_a_projection_is_chosen_by_its_name() -> None:
    site = site_of(tiny_model("gpt2"), GraceParams(layer=0, projection="c_fc"))
    assert site.module == "transformer.h.0.mlp.c_fc"
    assert site.parameter == "transformer.h.0.mlp.c_fc.weight"


def test_an_encoders_projection_is_found_in_the_encoder() -> None:
    site = site_of(tiny_model("t5_gated"), GraceParams(layer=3, stack="encoder", projection="wi_1"))
    assert site.module == "encoder.block.3.layer.1.DenseReluDense.wi_1"


def test_an_unknown_projection_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidParameterError, match="up_proj, down_proj"):
        site_of(tiny_model("llama"), GraceParams(layer=0, projection="c_fc"))


def test_a_layer_beyond_the_last_is_refused() -> None:
    with pytest.raises(LayerOutOfRangeError, match="from 0 to 2"):
        site_of(tiny_model("gpt2"), GraceParams(layer=3))


def test_a_decoder_has_no_encoder_to_gate() -> None:
    with pytest.raises(UnsupportedModelError, match="encoder"):
        site_of(tiny_model("gpt2"), GraceParams(layer=0, stack="encoder"))


def test_no_requests_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no requests"):
        locate(tiny_model("gpt2"), [], GraceParams(), EditContext())


def test_a_traced_layer_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="causal tracing"):
        locate(tiny_model("gpt2"), [NORWAY], GraceParams(), EditContext(locate="trace"))


def test_what_stands_before_the_start_token_cannot_be_replaced() -> None:
    params = GraceParams(replacement="replace_prompt")
    with pytest.raises(InvalidParameterError, match="stack=encoder"):
        locate(tiny_model("t5"), [NORWAY], params, EditContext())


def test_what_stands_before_a_prompts_only_token_cannot_be_replaced() -> None:
    params = GraceParams(replacement="replace_prompt")
    request = EditRequest(prompt="{}", subject="T", target_new="the")
    with pytest.raises(InvalidRequestError, match="one token"):
        locate(tiny_model("gpt2"), [request], params, EditContext())
