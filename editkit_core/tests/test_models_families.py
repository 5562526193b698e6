"""Families are found from the module tree; the model's type only breaks ties."""

import subprocess
import sys

import attrs
import pytest
from torch import nn

from editkit_core.errors import UnknownFamilyError
from editkit_core.models.families import BUILTIN_FAMILIES, Family, find_family
from editkit_core.testing import TINY_FAMILIES, tiny_model

BY_NAME = {family.name: family for family in BUILTIN_FAMILIES}


def test_tiny_models_cover_every_builtin_family():
    assert set(TINY_FAMILIES) == set(BY_NAME)


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_each_tiny_model_is_found_as_its_own_family(name):
    assert tiny_model(name).family is BY_NAME[name]


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_every_path_of_the_family_is_a_module(name):
    model = tiny_model(name)
    family = model.family
    for layer in range(3):
        for path in (
            family.block(layer),
            family.attention(layer),
            family.mlp(layer),
            family.mlp_down(layer),
        ):
            assert isinstance(model.module(path), nn.Module)
    for path in (family.embedding, family.final_norm, family.body, family.head):
        assert isinstance(model.module(path), nn.Module)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", "gpt2"),
        ("gpt_neo", "gpt_neo"),
        ("gptj", "gptj"),
        ("llama", "llama"),
        ("mistral", "llama"),
        ("qwen2", "llama"),
        ("qwen3", "qwen3"),
    ],
)
def test_an_unlisted_model_type_gets_the_first_family_whose_tree_fits(name, expected):
    model = tiny_model(name).model
    model.config.model_type = "something_new"
    assert find_family(model, BUILTIN_FAMILIES).name == expected


def test_a_wrong_model_type_does_not_override_the_tree():
    model = tiny_model("gpt_neo").model
    model.config.model_type = "gpt2"
    assert find_family(model, BUILTIN_FAMILIES).name == "gpt_neo"


def test_a_registered_family_with_the_same_tree_wins_by_its_model_type():
    model = tiny_model("llama").model
    model.config.model_type = "my_model"
    mine = attrs.evolve(BY_NAME["llama"], name="mine", model_types=("my_model",))
    assert find_family(model, [*BUILTIN_FAMILIES, mine]) is mine


def test_a_decoder_family_does_not_fit_an_encoder_decoder():
    model = tiny_model("llama").model
    model.config.is_encoder_decoder = True
    with pytest.raises(UnknownFamilyError, match="llama: encoder-decoder"):
        find_family(model, BUILTIN_FAMILIES)
    theirs = attrs.evolve(BY_NAME["llama"], name="theirs", is_encoder_decoder=True)
    assert find_family(model, [*BUILTIN_FAMILIES, theirs]) is theirs


def test_a_layer_built_differently_keeps_a_family_from_fitting():
    model = tiny_model("llama").model
    model.model.layers[2].mlp = nn.Identity()
    with pytest.raises(UnknownFamilyError, match=r"no model\.layers\.2\.mlp\.down_proj"):
        find_family(model, BUILTIN_FAMILIES)


def test_unknown_family_says_what_was_looked_for_and_found():
    stranger = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(UnknownFamilyError) as caught:
        find_family(stranger, BUILTIN_FAMILIES)
    message = str(caught.value)
    assert "gpt2: no transformer.h.0" in message
    assert "llama: no model.layers.0" in message
    assert "Found the modules: 0, 1" in message
    assert "editkit_register_model_families" in message


def test_a_site_names_the_down_projection_and_its_weight():
    site = BY_NAME["gpt2"].site(2, "last")
    assert site.module == "transformer.h.2.mlp.c_proj"
    assert site.parameter == "transformer.h.2.mlp.c_proj.weight"
    assert (site.layer, site.token, site.role) == (2, "last", "mlp_down")


def test_count_layers_stops_at_the_first_missing_block():
    family = BY_NAME["gpt2"]
    assert family.count_layers(["transformer.h.0", "transformer.h.1", "transformer.h.3"]) == 2


def test_importing_models_families_and_text_imports_no_torch():
    code = (
        "import sys, editkit_core.models, editkit_core.models.families, editkit_core.models.text, "
        "editkit_core.testing; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_everything_the_package_exports_can_be_loaded():
    import editkit_core.models
    import editkit_core.testing

    for package in (editkit_core.models, editkit_core.testing):
        assert package.__all__ == sorted(package.__all__)
        assert dir(package) == package.__all__
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="no_such_name"):
            package.no_such_name  # noqa: B018


def test_a_family_is_a_value():
    assert attrs.evolve(BY_NAME["gpt2"]) == BY_NAME["gpt2"]
    assert isinstance(BY_NAME["gpt2"], Family)
