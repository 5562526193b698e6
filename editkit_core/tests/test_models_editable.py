"""What an `EditableModel` says about a model, and that wrapping one leaves it clean."""

import pytest
import torch
from transformers import PythonBackend

from editkit_core.errors import (
    LayerOutOfRangeError,
    ModuleNotFoundInModelError,
    PromptTooLongError,
    TokenizerWithoutOffsetsError,
    UnknownFamilyError,
    UnsupportedModelError,
)
from editkit_core.models import EditableModel, pad_batch, token_span
from editkit_core.testing import TINY_FAMILIES, tiny_model, tiny_tokenizer
from editkit_core.types import EditRequest

REQUEST = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima")


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def model(request):
    return tiny_model(request.param, n_layers=2, d=48, max_positions=40)


def test_the_facts_are_those_of_the_config(model):
    assert model.n_layers == 2
    assert model.d_model == 48
    assert model.max_positions == 40
    assert model.vocab == len(model.tokenizer)
    assert model.dtype == torch.float32
    assert model.device == torch.device("cpu")
    assert not model.is_encoder_decoder
    assert model.family.name in repr(model)


def test_a_wrapped_model_is_in_evaluation_mode_and_asks_for_no_gradient(model):
    assert not model.model.training
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_a_wrapped_model_has_no_checkpoint(model):
    assert model.source is None
    assert model.folder is None


def test_a_model_is_named_by_the_user_or_its_class():
    model = tiny_model()
    assert model.name == "tiny-gpt2"
    assert EditableModel.wrap(model.model, model.tokenizer).name == "GPT2LMHeadModel"


def test_a_slow_tokenizer_is_refused():
    slow = PythonBackend.__new__(PythonBackend)
    with pytest.raises(TokenizerWithoutOffsetsError, match="PythonBackend"):
        EditableModel.wrap(tiny_model().model, slow)


def test_a_model_of_no_family_is_refused():
    model = tiny_model()
    with pytest.raises(UnknownFamilyError):
        EditableModel.wrap(model.model, model.tokenizer, families=())


@pytest.mark.parametrize("layer", [-1, 2, 99])
def test_a_layer_out_of_range_names_the_range(model, layer):
    with pytest.raises(LayerOutOfRangeError, match=f"no layer {layer}.*from 0 to 1"):
        model.site(layer)


def test_a_wrong_name_suggests_the_right_one(model):
    site = model.site(0)
    assert model.parameter(site.parameter) is model.module(site.module).weight
    with pytest.raises(ModuleNotFoundInModelError, match=f"Did you mean '{site.module}'"):
        model.module(site.module[:-1])
    with pytest.raises(ModuleNotFoundInModelError, match=f"Did you mean '{site.parameter}'"):
        model.parameter(site.parameter[:-1])


def test_both_names_of_a_tied_weight_give_it():
    model = tiny_model("gpt2")
    assert model.parameter("lm_head.weight") is model.parameter("transformer.wte.weight")


def test_writing_to_the_weight_view_writes_the_parameter():
    model = tiny_model("gpt2")
    site = model.site(0)
    model.weight(site)[1, 2] = 42.0
    assert model.parameter(site.parameter)[2, 1] == 42.0  # Conv1D stores (d_in, d_out)


@pytest.mark.parametrize("prefix", ["", "Winter came early. ", "Norway, {}? "])
def test_the_subject_is_found_behind_a_prefix(model, prefix):
    encoded = model.encode(prefix + REQUEST.text)
    start = len(prefix) + len("The capital of ")
    span = token_span(encoded, start, start + len("Norway"))
    assert model.subject_position(REQUEST, prefix=prefix) == span.end - 1
    assert model.subject_position(REQUEST, "subject_first", prefix=prefix) == span.start
    with_target = model.subject_position(REQUEST, prefix=prefix, target="Lima")
    assert with_target == span.end - 1


def test_a_text_longer_than_the_context_is_refused(model):
    model.check_length(40, "the prompt")
    with pytest.raises(PromptTooLongError, match=r"The prompt has 41 tokens.*at most 40"):
        model.check_length(41, "the prompt")
    with pytest.raises(PromptTooLongError):
        model.logits(pad_batch([[5] * 41], model.pad_id))


def test_padding_alone_does_not_make_a_text_too_long(model):
    rows = [[5] * 40, [5]]
    assert model.logits(pad_batch(rows, model.pad_id, "left")).shape == (2, 40, model.vocab)


def test_logits_are_float32_without_a_graph_whatever_the_models_dtype():
    model = tiny_model()
    rows = pad_batch([[5, 6, 7]], model.pad_id)
    full = model.logits(rows)
    model.model.to(torch.bfloat16)
    half = model.logits(rows)
    assert half.dtype == torch.float32
    assert not half.requires_grad
    assert model.dtype == torch.bfloat16
    assert torch.allclose(half, full, atol=0.5)


def test_logits_are_those_of_the_plain_model(model):
    ids = model.encode("Marie Curie was born in").ids
    expected = model.model(torch.tensor([ids])).logits
    assert torch.allclose(model.logits(pad_batch([ids], model.pad_id)), expected, atol=1e-5)


def test_pad_id_is_the_tokenizers_else_eos_else_zero():
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer=tokenizer)
    assert model.pad_id == tokenizer.eos_token_id
    tokenizer.pad_token = "<unk>"
    assert model.pad_id == tokenizer.unk_token_id
    tokenizer.pad_token = tokenizer.eos_token = None
    assert model.pad_id == 0


def test_the_digest_is_the_same_for_the_same_content_only():
    first, second = tiny_model(seed=1), tiny_model(seed=1)
    assert first.state_digest() == second.state_digest()
    assert first.state_digest() != tiny_model(seed=2).state_digest()
    weight = first.parameter(first.site(2).parameter)
    old = weight[0, 0].item()
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(99.0))
    assert first.state_digest() != second.state_digest()
    weight[0, 0] = old
    assert first.state_digest() == second.state_digest()


def test_the_digest_tells_a_buffer_a_dtype_and_minus_zero():
    model = tiny_model("gpt_neo")
    before = model.state_digest()
    buffer = model.model.transformer.h[0].attn.attention.bias
    buffer[..., 0, 0] = ~buffer[..., 0, 0]
    assert model.state_digest() != before
    buffer[..., 0, 0] = ~buffer[..., 0, 0]
    weight = model.parameter(model.site(0).parameter)
    weight[0, 0] = 0.0
    zero = model.state_digest()
    weight[0, 0] = -0.0
    assert model.state_digest() != zero
    as_float = model.state_digest()
    model.model.to(torch.bfloat16)
    assert model.state_digest() != as_float


def test_the_digest_of_an_offloaded_model_is_refused():
    model = tiny_model()
    model.model.to("meta")
    with pytest.raises(UnsupportedModelError, match="offloaded"):
        model.state_digest()


def test_a_tiny_model_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    tiny_model(seed=9)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tiny_tokenizer_is_the_same_every_time(kind):
    texts = {tiny_tokenizer(kind).backend_tokenizer.to_str() for _ in range(3)}
    assert len(texts) == 1
