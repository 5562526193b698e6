"""MEND's parameters and presets."""

from __future__ import annotations

import pytest

from editkit_core.errors import InvalidParameterError, UnknownParameterError
from editkit_core.params import ModelShape, load_presets, resolve, structure, unstructure
from editkit_mend.info import INFO
from editkit_mend.params import MendParams
from editkit_mend.train import schedule


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers", [1, 1]),
        ("layers", [-1]),
        ("encoder_layers", [-2]),
        ("blocks", -1),
        ("rank", 0),
        ("n_hidden", -1),
        ("norm", "layer"),
        ("tokens", "last"),
        ("edit_lr", 0.0),
        ("strength", 0.0),
        ("lr", 0.0),
        ("lr_lr", -1.0),
        ("decay", "sudden"),
        ("c_edit", -0.1),
        ("batch", 0),
        ("n_edits", 0),
        ("clip", 0.0),
        ("steps", 0),
        ("patience", 0),
        ("locality", -1),
        ("phrasings", "any"),
        ("retarget", "any"),
        ("statistics", 1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidParameterError, match=name):
        structure(MendParams, {name: value}, owner="mend")


def test_an_unknown_parameter_is_refused_with_the_closest_one() -> None:
    with pytest.raises(UnknownParameterError, match="edit_lr"):
        structure(MendParams, {"editlr": 1.0}, owner="mend")


def test_parameters_survive_being_written_as_json() -> None:
    params = MendParams(layers=(1, 2), projections=("c_fc",), clip=None, edit_lr=-3e-4)
    assert structure(MendParams, unstructure(params), owner="mend") == params


def test_every_preset_is_valid_and_says_where_it_comes_from() -> None:
    presets = load_presets(INFO)
    assert presets
    for preset in presets:
        structure(MendParams, preset.params, owner="mend")
        marks = ("paper/reference", "ours, tuned on ", "not measured: ")
        assert preset.source.startswith(marks), preset.name


@pytest.mark.parametrize(
    ("family", "n_layers", "d_model", "layers"),
    [
        ("gpt2", 24, 1024, (21, 22, 23)),
        ("gpt2", 48, 1600, (45, 46, 47)),
        ("gptj", 28, 4096, (25, 26, 27)),
        ("gpt_neo", 32, 2560, (29, 30, 31)),
        ("llama", 32, 4096, (29, 30, 31)),
        ("mistral", 32, 4096, (29, 30, 31)),
    ],
)
def test_the_papers_models_are_edited_in_the_papers_layers(
    family: str, n_layers: int, d_model: int, layers: tuple[int, ...]
) -> None:
    shape = ModelShape(name="some/model", family=family, n_layers=n_layers, d_model=d_model)
    resolved = resolve(INFO, shape)
    assert resolved.params.layers == layers
    assert resolved.source == "paper/reference"
    assert resolved.params.rank == 1920


def test_the_schedule_is_what_the_parameters_say() -> None:
    made = schedule(MendParams(steps=7, batch=2, accumulate=3, clip=5.0, decay="linear", warmup=1))
    assert (made.steps, made.batch, made.accumulate, made.clip) == (7, 2, 3, 5.0)
    assert (made.decay, made.warmup, made.optimizer) == ("linear", 1, "adam")
