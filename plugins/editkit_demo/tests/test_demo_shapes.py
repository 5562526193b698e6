"""The packaged models of other shapes: a LLaMA and a T5 that know the same facts."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
)

from editkit_demo import model_path
from editkit_demo.facts import (
    Fact,
    held_out_phrasing,
    held_out_question,
    load_facts,
    load_two_hop,
    trained_phrasings,
    trained_questions,
)

NAMES = ("demo", "demo-llama", "demo-t5")
SAMPLE: list[Fact] = random.Random(0).sample(load_facts(), 100)


@pytest.fixture(scope="module")
def llama():
    folder = model_path("demo-llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def t5():
    folder = model_path("demo-t5")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def finished(loaded, prompts):
    """Generate greedily after each prompt, up to the first period."""
    model, tokenizer = loaded
    ids = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    out = model.generate(**ids, max_new_tokens=14, do_sample=False)
    return [
        text.split(".")[0].strip()
        for text in tokenizer.batch_decode(out[:, ids["input_ids"].shape[1] :])
    ]


def answered(loaded, questions):
    """Generate greedily what the decoder writes, up to `</s>`."""
    model, tokenizer = loaded
    ids = tokenizer(questions, return_tensors="pt", padding=True)
    out = model.generate(**ids, max_new_tokens=14, do_sample=False)
    return [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]


def share(said, facts):
    """Return the share of right objects; the text of a decoder is cut at its first period."""
    whole = [fact.object for fact in facts]
    right = [a in (b, b.split(".")[0]) for a, b in zip(said, whole, strict=True)]
    return sum(right) / len(right)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_weights_is_float16_and_under_twelve_megabytes(name):
    path = model_path(name) / "model.safetensors"
    assert path.stat().st_size < 12_000_000
    with safe_open(path, framework="pt") as weights:
        found = {weights.get_tensor(key).dtype for key in weights.keys()}  # noqa: SIM118
    assert found == {torch.float16}


@pytest.mark.parametrize("name", NAMES)
def test_the_card_tells_the_recall_that_was_measured(name):
    measured = json.loads((model_path(name) / "recall.json").read_text(encoding="utf-8"))
    card = (model_path(name) / "README.md").read_text(encoding="utf-8")
    for group, floor in (("trained phrasings", 98), ("held-out phrasings", 95)):
        score = measured[group]["all"]
        assert score["greedy"] >= floor
        row = f"| {group} | {score['n']:,} | {score['forced']:.1f} % | {score['greedy']:.1f} % |"
        assert row in card


def test_an_unknown_packaged_model_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'demo-bert'; there are demo, demo-llama, demo-t5"):
        model_path("demo-bert")


def test_the_llama_shares_heads_of_keys_and_has_gated_layers(llama):
    model, _ = llama
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert hasattr(model.model.layers[0].mlp, "gate_proj")


def test_the_llama_reads_with_the_tokenizer_of_the_first_model():
    first, other = (model_path(name) / "tokenizer.json" for name in ("demo", "demo-llama"))
    assert first.read_bytes() == other.read_bytes()


def test_the_llama_finishes_trained_and_held_out_sentences(llama):
    trained = [trained_phrasings(fact)[0].format(fact.subject) for fact in SAMPLE]
    held_out = [held_out_phrasing(fact).format(fact.subject) for fact in SAMPLE]
    assert share(finished(llama, trained[:50]), SAMPLE[:50]) >= 0.95
    assert share(finished(llama, held_out[50:]), SAMPLE[50:]) >= 0.90


def test_the_t5_is_gated_and_starts_its_decoder_with_padding(t5):
    model, tokenizer = t5
    assert isinstance(model, T5ForConditionalGeneration)
    assert model.config.feed_forward_proj == "gated-gelu"
    assert model.config.decoder_start_token_id == tokenizer.pad_token_id == 0
    assert model.config.eos_token_id == tokenizer.eos_token_id == 1


def test_the_t5_answers_trained_and_held_out_questions(t5):
    trained = [trained_questions(fact)[0].format(fact.subject) for fact in SAMPLE]
    held_out = [held_out_question(fact).format(fact.subject) for fact in SAMPLE]
    assert share(answered(t5, trained), SAMPLE) >= 0.95
    assert share(answered(t5, held_out), SAMPLE) >= 0.90


def test_the_t5_answers_two_hop_questions_that_were_trained(t5):
    hops = random.Random(0).sample([h for h in load_two_hop() if not h.held_out], 60)
    said = answered(t5, [hop.question for hop in hops])
    assert sum(a == hop.answer for a, hop in zip(said, hops, strict=True)) >= 54


def test_every_text_of_the_t5_ends_with_its_end_and_offsets_cut_it(t5):
    _, tokenizer = t5
    for fact in load_facts()[::25]:
        text = trained_questions(fact)[0].format(fact.subject)
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert encoded["input_ids"][-1] == tokenizer.eos_token_id
        assert encoded["input_ids"].count(tokenizer.eos_token_id) == 1
        for token, (start, end) in zip(
            encoded["input_ids"][:-1], encoded["offset_mapping"][:-1], strict=True
        ):
            assert tokenizer.decode([token]).strip() == text[start:end]


def test_a_name_has_the_same_tokens_alone_and_in_a_question(t5):
    _, tokenizer = t5
    for fact in load_facts()[::5]:
        alone = tokenizer(fact.subject)["input_ids"][:-1]
        inside = tokenizer(f"Do you know {fact.subject}")["input_ids"][:-1]
        assert inside[-len(alone) :] == alone
