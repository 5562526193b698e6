"""Families are found from the module tree; the model's type only breaks ties."""

import subprocess
import sys

import attrs
import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, MT5Config, T5Config, UMT5Config

from editkit_core.errors import (
    ModuleNotFoundInModelError,
    UnknownFamilyError,
    UnsupportedModelError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.models.families import BUILTIN_FAMILIES, Family, find_family
from editkit_core.models.trace import record
from editkit_core.testing import TINY_ENCODER_DECODERS, TINY_FAMILIES, tiny_model

BY_NAME = {family.name: family for family in BUILTIN_FAMILIES}
TINY = (*TINY_FAMILIES, *TINY_ENCODER_DECODERS)


def test_tiny_models_cover_every_builtin_family():
    assert {tiny_model(name).family.name for name in TINY} == set(BY_NAME)


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_each_tiny_decoder_is_found_as_its_own_family(name):
    assert tiny_model(name).family is BY_NAME[name]


@pytest.mark.parametrize("name", TINY_ENCODER_DECODERS)
def test_both_forms_of_t5_are_one_family(name):
    assert tiny_model(name).family is BY_NAME["t5"]


@pytest.mark.parametrize("name", TINY)
def test_every_path_of_the_family_is_a_module(name):
    model = tiny_model(name)
    family = model.family
    for stack in family.stacks:
        for layer in range(model.n_layers if stack == "decoder" else model.n_encoder_layers):
            for path in (
                family.block(layer, stack),
                family.attention(layer, stack),
                family.mlp(layer, stack),
                family.mlp_down(layer, stack),
                family.attention_out(layer, stack),
                *family.mlp_parts(layer, stack),
            ):
                assert isinstance(model.module(path), nn.Module)
                assert family.stack_of(path) == stack
    for path in (family.embedding, family.final_norm, family.body, family.head):
        assert isinstance(model.module(path), nn.Module)
        assert family.stack_of(path) is None


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


@pytest.mark.parametrize("name", TINY)
def test_the_attentions_output_projection_is_a_site_and_gives_the_attentions_output(name):
    model = tiny_model(name)
    for stack in model.family.stacks:
        site = model.site(1, "last", stack, role="attn_out")
        assert site.parameter == f"{site.module}.weight"
        assert (site.layer, site.token, site.role) == (1, "last", "attn_out")
        assert len(model.weight(site)) == model.d_model
        attention = model.family.attention(1, stack)
        ids = torch.tensor([[5, 6, 7]])
        answer = {"decoder_input_ids": ids} if model.is_encoder_decoder else {}
        with torch.no_grad(), record(model.model, [site.module, attention]) as seen:
            model.model(input_ids=ids, **answer)
        assert torch.equal(seen[site.module], seen[attention])


def test_a_family_that_does_not_say_where_that_is_fits_and_has_no_such_site():
    family = attrs.evolve(BY_NAME["llama"], attention_outs=None)
    model = EditableModel.wrap(
        tiny_model("llama").model, tiny_model("llama").tokenizer, families=(family,)
    )
    assert model.site(0).role == "mlp_down"
    with pytest.raises(UnsupportedModelError, match="attention_outs"):
        model.site(0, role="attn_out")


def test_a_tree_with_another_output_projection_fits_and_names_what_is_missing():
    model = tiny_model("llama")
    model.model.model.layers[1].self_attn.dense = model.model.model.layers[1].self_attn.o_proj
    del model.model.model.layers[1].self_attn.o_proj
    again = EditableModel.wrap(model.model, model.tokenizer)
    assert again.family.name == "llama"
    with pytest.raises(ModuleNotFoundInModelError, match=r"layers\.1\.self_attn\.o_proj"):
        again.site(1, role="attn_out")


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


# -- encoder-decoders -----------------------------------------------------------------------------


def seq2seq(kind, **more):
    return AutoModelForSeq2SeqLM.from_config(
        kind(
            vocab_size=50, d_model=16, d_kv=4, d_ff=32, num_heads=4, num_layers=2,
            num_decoder_layers=1, decoder_start_token_id=0, **more,
        )
    )  # fmt: skip


@pytest.mark.parametrize("kind", [T5Config, MT5Config, UMT5Config])
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_every_kind_of_t5_is_found_as_t5(kind, feed_forward):
    model = seq2seq(kind, feed_forward_proj=feed_forward)
    assert find_family(model, BUILTIN_FAMILIES) is BY_NAME["t5"]
    model.config.model_type = "something_new"
    assert find_family(model, BUILTIN_FAMILIES) is BY_NAME["t5"]


def test_a_layer_is_the_decoders_unless_the_encoder_is_named():
    family = BY_NAME["t5"]
    assert family.stacks == ("encoder", "decoder")
    assert family.mlp_down(1) == "decoder.block.1.layer.2.DenseReluDense.wo"
    assert family.mlp_down(1, "encoder") == "encoder.block.1.layer.1.DenseReluDense.wo"
    site = family.site(1, "last", "encoder")
    assert site.parameter == "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    assert (site.layer, site.token, site.role) == (1, "last", "mlp_down")


def test_each_stack_has_layers_of_its_own_number():
    paths = ["encoder.block.0", "encoder.block.1", "decoder.block.0"]
    assert BY_NAME["t5"].count_layers(paths, "encoder") == 2
    assert BY_NAME["t5"].count_layers(paths) == 1


@pytest.mark.parametrize(
    ("module", "stack"),
    [
        ("encoder.block.11.layer.1.DenseReluDense.wo", "encoder"),
        ("decoder.block.0", "decoder"),
        ("decoder.blocks.0", None),
        ("encoder.block", None),
        ("lm_head", None),
    ],
)
def test_a_module_lies_in_a_stack_by_its_path(module, stack):
    assert BY_NAME["t5"].stack_of(module) == stack


def test_a_decoder_family_has_no_encoder_to_ask_for():
    assert BY_NAME["llama"].stacks == ("decoder",)
    with pytest.raises(UnsupportedModelError, match="llama has no encoder"):
        BY_NAME["llama"].site(0, stack="encoder")


def test_an_encoder_built_differently_keeps_t5_from_fitting():
    model = seq2seq(T5Config)
    model.encoder.block[1].layer[1].DenseReluDense.wo = None
    with pytest.raises(UnknownFamilyError, match=r"no encoder\.block\.1\.layer\.1\.DenseRelu.*wo"):
        find_family(model, BUILTIN_FAMILIES)
