"""Continuing texts: greedy in padded batches, sampled with a seed, stopped where asked."""

import pytest
import torch

from editkit_core.errors import InvalidParameterError, PromptTooLongError
from editkit_core.models.generation import Sampling
from editkit_core.models.text import pad_batch
from editkit_core.testing import TINY_FAMILIES, tiny_model

PROMPTS = [
    "The capital of Norway is",
    "Peru",
    "What language do people speak in Brazil? They speak",
    "Marie Curie was",
]


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama", tokenizer="unigram")


def greedy_by_full_recomputation(model, prompt, n):
    """The plain way: no cache, no padding, one token at a time."""
    ids = list(model.encode(prompt).ids)
    start = len(ids)
    for _ in range(n):
        next_id = int(model.logits(pad_batch([ids], 0))[0, -1].argmax())
        if next_id in model.stop_ids:
            break
        ids.append(next_id)
    spell = model.tokenizer.decode
    before = spell(ids[:start], skip_special_tokens=True)
    return spell(ids, skip_special_tokens=True)[len(before) :]


def test_a_padded_batch_equals_one_by_one_and_full_recomputation(model):
    batch = model.generate(PROMPTS, max_new_tokens=12)
    assert batch == [model.generate([prompt], max_new_tokens=12)[0] for prompt in PROMPTS]
    assert batch == [greedy_by_full_recomputation(model, prompt, 12) for prompt in PROMPTS]


def test_the_batch_size_changes_nothing(llama):
    texts = llama.generate(PROMPTS, max_new_tokens=8)
    assert llama.generate(PROMPTS, max_new_tokens=8, batch_size=3) == texts
    assert llama.generate([]) == []


def test_the_same_seed_gives_the_same_texts_and_another_seed_others(model):
    options = {"sample": True, "top_k": 20, "max_new_tokens": 10}
    first = model.generate(PROMPTS, seed=1, **options)
    assert model.generate(PROMPTS, seed=1, **options) == first
    assert model.generate(PROMPTS, seed=2, **options) != first


def test_without_a_seed_two_samples_differ(llama):
    first = llama.generate(PROMPTS, sample=True, max_new_tokens=20)
    assert llama.generate(PROMPTS, sample=True, max_new_tokens=20) != first


def test_equal_prompts_in_a_batch_are_sampled_apart(llama):
    texts = llama.generate(["Peru"] * 4, sample=True, seed=0, max_new_tokens=10)
    assert len(set(texts)) > 1


@pytest.mark.parametrize("options", [{}, {"sample": True, "seed": 5}, {"sample": True}])
def test_the_global_random_state_is_neither_read_nor_changed(llama, options):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    llama.generate(PROMPTS, max_new_tokens=5, **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_top_k_one_is_greedy(model):
    texts = model.generate(PROMPTS, sample=True, top_k=1, seed=3, max_new_tokens=8)
    assert texts == model.generate(PROMPTS, max_new_tokens=8)


LOGITS = torch.log(torch.tensor([[0.15, 0.5, 0.05, 0.3]]))


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        (Sampling(seed=0), [0.15, 0.5, 0.05, 0.3]),
        (Sampling(seed=0, top_k=2), [0, 0.625, 0, 0.375]),
        (Sampling(seed=0, top_p=0.7), [0, 0.625, 0, 0.375]),
        (Sampling(seed=0, top_p=0.81), [3 / 19, 10 / 19, 0, 6 / 19]),
        (Sampling(seed=0, top_p=0.01), [0, 1, 0, 0]),
        (Sampling(seed=0, temperature=0.5), [9 / 146, 100 / 146, 1 / 146, 36 / 146]),
        (Sampling(seed=0, top_k=9, top_p=1.0), [0.15, 0.5, 0.05, 0.3]),
    ],
    ids=["plain", "top_k", "top_p", "top_p over", "top_p tiny", "temperature", "no limit"],
)
def test_tokens_are_drawn_with_the_asked_probabilities(sampling, shares):
    draws = sampling.draw(LOGITS.expand(20000, -1), sampling.generator())
    found = torch.bincount(draws, minlength=4) / 20000
    assert torch.allclose(found, torch.tensor(shares, dtype=torch.float32), atol=0.015)
    assert all(share > 0 for share, count in zip(shares, found, strict=True) if count > 0)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_a_sampling_parameter_out_of_range_is_refused(llama, options):
    with pytest.raises(InvalidParameterError, match=next(iter(options))):
        llama.generate(["Peru"], sample=True, **options)


def test_a_continuation_stops_just_before_the_asked_text(llama):
    (full,) = llama.generate(["The capital of Norway is"], max_new_tokens=20)
    stop = full[len(full) // 2]
    (cut,) = llama.generate(["The capital of Norway is"], max_new_tokens=20, stop_at=stop)
    assert cut == full[: full.index(stop)]


def force_tokens(monkeypatch, model, ids):
    """Make the model say these tokens one after the other, whatever the prompt."""
    forward = model.model.forward
    said = iter(ids)

    def say(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits[:] = 0.0
        out.logits[..., next(said)] = 1.0
        return out

    monkeypatch.setattr(model.model, "forward", say)


def test_a_text_ends_at_eos(monkeypatch, llama):
    oslo = llama.encode_pair("It is", "Oslo").target_ids
    force_tokens(monkeypatch, llama, [*oslo, llama.tokenizer.eos_token_id])
    assert llama.generate(["It is"], max_new_tokens=50) == [" Oslo"]


def test_prompt_and_continuation_read_as_one_text(monkeypatch, llama):
    oslo = llama.encode_pair("It is", "Oslo").target_ids
    force_tokens(monkeypatch, llama, [*oslo, 2, *oslo, 2, *oslo, 2])
    assert llama.generate(["It is"]) == [" Oslo"]
    assert llama.generate(["It is "]) == ["Oslo"]
    assert llama.generate(["It is   "]) == ["Oslo"]


def test_a_space_at_the_prompts_end_does_not_change_what_is_said(model):
    (plain,) = model.generate(["The capital of Norway is"], max_new_tokens=8)
    (spaced,) = model.generate(["The capital of Norway is "], max_new_tokens=8)
    assert spaced == plain.lstrip(" ")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_an_empty_prompt_begins_a_text(kind):
    model = tiny_model(tokenizer=kind)
    assert len(model.generate([""], max_new_tokens=8)) == 1


def test_a_text_ends_with_the_context():
    model = tiny_model(max_positions=12)
    model.generation_config = None
    ids = model.encode("The capital of Norway is").ids
    (text,) = model.generate(["The capital of Norway is"], max_new_tokens=99)
    (same,) = model.generate(["The capital of Norway is"], max_new_tokens=12 - len(ids))
    assert text == same


def test_a_prompt_that_leaves_no_room_is_refused():
    model = tiny_model(max_positions=12)
    with pytest.raises(PromptTooLongError, match="and one new token"):
        model.generate(["The capital of Norway is the capital of Norway is the capital"])
