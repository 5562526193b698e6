"""Keys, contexts, and holding a model in evaluation mode."""

from __future__ import annotations

import pytest
import torch

from editkit_core.errors import NonFiniteEditError, PromptTooLongError
from editkit_core.models.editable import EditableModel
from editkit_core.models.text import pad_batch
from editkit_core.models.trace import record
from editkit_core.numerics.contexts import sample_contexts
from editkit_core.numerics.evaluating import evaluating
from editkit_core.numerics.keys import edited_position, keys_at, mention_keys, subject_keys
from editkit_core.numerics.probability import target_probability
from editkit_core.testing.models import TINY_FAMILIES, tiny_model
from editkit_core.types import EditRequest

REQUEST = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima")


@pytest.fixture(scope="module")
def gpt2() -> EditableModel:
    return tiny_model("gpt2")


def read_whole(model: EditableModel, text: str, layer: int) -> torch.Tensor:
    """All keys of one unpadded text by a full forward pass, ``(len, d_in)``."""
    batch = pad_batch([model.encode(text).ids], model.pad_id)
    name = model.site(layer).module
    with record(model.model, [name], inputs=True) as seen:
        model.logits(batch)
    return seen[name][0].double()


# -- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_a_key_is_the_input_of_the_down_projection_at_the_subjects_last_token(
    family: str,
) -> None:
    model = tiny_model(family)
    contexts = ("", "The old mill. ")
    keys = subject_keys(model, model.site(1), REQUEST, contexts)
    for key, context in zip(keys, contexts, strict=True):
        text = context + REQUEST.text
        encoded = model.encode(text)
        at = max(i for i, (_, end) in enumerate(encoded.offsets) if end == text.index(" is"))
        torch.testing.assert_close(key, read_whole(model, text, 1)[at], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_left_and_right_padding_give_the_same_keys(kind: str, side: str) -> None:
    model = tiny_model("llama", tokenizer=kind)  # type: ignore[arg-type]  # parametrised
    site = model.site(1)
    texts = ["The capital of Norway", "Winter came early that year, and the harbour"]
    rows = [model.encode(text).ids for text in texts]
    batch = pad_batch(rows, model.pad_id, side=side)  # type: ignore[arg-type]  # parametrised
    with record(model.model, [site.module], inputs=True) as seen:
        model.logits(batch)
    keys = keys_at(model, site, [(ids, len(ids) - 1) for ids in rows])
    for row, ids in enumerate(rows):
        padded = seen[site.module][row, batch.index(row, len(ids) - 1)].double()
        torch.testing.assert_close(keys[row], padded, rtol=1e-4, atol=1e-5)


def test_what_follows_the_subject_does_not_change_its_key(gpt2: EditableModel) -> None:
    other = EditRequest(
        prompt="The capital of {} was once called", subject="Norway", target_new="a"
    )
    one = subject_keys(gpt2, gpt2.site(2), REQUEST, ("",))
    torch.testing.assert_close(subject_keys(gpt2, gpt2.site(2), other, ("",)), one)


def test_the_last_occurrence_of_the_subject_is_the_edited_one(gpt2: EditableModel) -> None:
    request = EditRequest(prompt="Peru is Peru", subject="Peru", target_new="Lima")
    pair = gpt2.encode_pair(request.text, "Lima")
    at = edited_position(pair, request, gpt2.site(0), "")
    assert at == pair.n_prompt - 1


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_last_token_is_the_prompts_last_not_the_targets(kind: str) -> None:
    model = tiny_model("llama", tokenizer=kind)  # type: ignore[arg-type]  # parametrised
    pair = model.encode_pair(REQUEST.text, "Buenos Aires")
    assert edited_position(pair, REQUEST, model.site(0, "last"), "") == pair.n_prompt - 1


def test_many_rows_are_read_in_order(gpt2: EditableModel) -> None:
    ids = gpt2.encode("Winter came early that year").ids
    places = [(ids, i % len(ids)) for i in range(70)]
    keys = keys_at(gpt2, gpt2.site(0), places)
    torch.testing.assert_close(keys[33], keys[33 % len(ids)])
    assert len(keys) == 70


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    model = tiny_model("gpt2", max_positions=16)
    with pytest.raises(PromptTooLongError, match="at most 16"):
        subject_keys(model, model.site(0), REQUEST, ("", "word " * 20))


def test_a_key_that_is_not_finite_is_refused() -> None:
    model = tiny_model("gpt2")
    model.parameter("transformer.wte.weight").data.fill_(float("nan"))
    with pytest.raises(NonFiniteEditError, match="float32"):
        subject_keys(model, model.site(0), REQUEST, ("",))


# -- contexts -------------------------------------------------------------------------------------


def test_contexts_are_the_same_for_the_same_seed_and_differ_for_another(
    gpt2: EditableModel,
) -> None:
    one = sample_contexts(gpt2, ((5, 4), (10, 4)), seed=7)
    torch.manual_seed(123)  # whatever the global state is
    assert sample_contexts(gpt2, ((5, 4), (10, 4)), seed=7) == one
    assert sample_contexts(gpt2, ((5, 4), (10, 4)), seed=8) != one


def test_the_first_context_is_empty_and_the_others_end_as_sentences(
    gpt2: EditableModel,
) -> None:
    contexts = sample_contexts(gpt2, ((5, 6),), seed=0)
    assert contexts[0] == ""
    assert len(contexts) > 1
    for context in contexts[1:]:
        assert context.endswith((". ", "! ", "? "))
        assert "\n" not in context


def test_sampling_contexts_leaves_the_global_random_state_alone(gpt2: EditableModel) -> None:
    state = torch.get_rng_state()
    sample_contexts(gpt2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_braces_in_a_context_do_no_harm(gpt2: EditableModel) -> None:
    keys = subject_keys(gpt2, gpt2.site(1), REQUEST, ("", "A {0} {} {x}. "))
    assert keys.shape[0] == 2


def test_no_lengths_give_the_bare_prompt_only(gpt2: EditableModel) -> None:
    assert sample_contexts(gpt2, (), seed=0) == ("",)


# -- evaluation mode and probability --------------------------------------------------------------


def test_every_module_gets_its_own_mode_back() -> None:
    model = tiny_model("gpt2").model
    model.transformer.h[1].train()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert model.transformer.h[1].attn.training
    assert not model.transformer.h[0].training


def test_target_probability_is_the_product_over_the_targets_tokens(gpt2: EditableModel) -> None:
    request = EditRequest(prompt="The capital of {} is", subject="Peru", target_new="old Warsaw")
    product = 1.0
    ids = list(gpt2.encode(request.text).ids)
    for token in gpt2.encode(request.text + " old Warsaw").ids[len(ids) :]:
        with torch.no_grad():
            logits = gpt2.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        product *= float(logits.softmax(dim=0)[token])
        ids.append(token)
    assert target_probability(gpt2, request) == pytest.approx(product, rel=1e-4)


# -- mentions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_mention_is_the_subject_right_after_the_context_without_its_period(kind: str) -> None:
    model = tiny_model("llama", tokenizer=kind)  # type: ignore[arg-type]  # parametrised
    keys = mention_keys(model, model.site(1), "Norway", ("", "The old mill. "))
    for key, text in zip(keys, ("Norway", "The old mill Norway"), strict=True):
        torch.testing.assert_close(key, read_whole(model, text, 1)[-1], rtol=1e-4, atol=1e-5)


def test_a_mention_does_not_depend_on_the_prompt(gpt2: EditableModel) -> None:
    bare = EditRequest(prompt="{}", subject="Norway", target_new="Lima")
    mentions = mention_keys(gpt2, gpt2.site(1), "Norway", ("",))
    torch.testing.assert_close(mentions, subject_keys(gpt2, gpt2.site(1), bare, ("",)))
