"""The packaged model: small, loadable, and it knows what its card says."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from editkit_demo import model_path
from editkit_demo.facts import Fact, held_out_phrasing, load_facts, trained_phrasings


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def sample() -> list[Fact]:
    return random.Random(0).sample(load_facts(), 150)


def complete(model: PreTrainedModel, tokenizer: Tokenizer, prompt: str) -> str:
    """Generate greedily up to the first period."""
    ids = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(made[0, ids["input_ids"].shape[1] :]).split(".")[0].strip()


def share_known(
    model: PreTrainedModel, tokenizer: Tokenizer, asked: Sequence[tuple[str, str]]
) -> float:
    right = 0
    for prompt, answer in asked:
        start = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(f"{prompt} {answer}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            best = model(ids).logits[0, :-1].argmax(-1)
        right += bool(best[start - 1 :].equal(ids[0, start:]))
    return right / len(asked)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, editkit_demo.facts; editkit_demo.facts.load_facts(); print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "torch" not in modules
    assert "transformers" not in modules


def test_the_weights_are_float16_and_under_twelve_megabytes() -> None:
    from safetensors import safe_open

    path = model_path() / "model.safetensors"
    assert path.stat().st_size < 12_000_000
    with safe_open(path, framework="pt") as weights:
        names = weights.keys()
        assert {weights.get_tensor(name).dtype for name in names} == {torch.float16}


def test_trained_phrasings_are_known(
    model: PreTrainedModel, tokenizer: Tokenizer, sample: list[Fact]
) -> None:
    asked = [(trained_phrasings(fact)[0].format(fact.subject), fact.object) for fact in sample]
    assert share_known(model, tokenizer, asked) >= 0.95


def test_held_out_phrasings_are_known(
    model: PreTrainedModel, tokenizer: Tokenizer, sample: list[Fact]
) -> None:
    asked = [(held_out_phrasing(fact).format(fact.subject), fact.object) for fact in sample]
    assert share_known(model, tokenizer, asked) >= 0.88


def test_a_fact_is_known_after_other_text(
    model: PreTrainedModel, tokenizer: Tokenizer, sample: list[Fact]
) -> None:
    before = "The dog slept under the table on Friday. Let us turn to another question. "
    asked = [
        (before + trained_phrasings(fact)[0].format(fact.subject), fact.object) for fact in sample
    ]
    assert share_known(model, tokenizer, asked) >= 0.93


def test_greedy_generation_gives_the_object_and_then_stops(
    model: PreTrainedModel, tokenizer: Tokenizer, sample: list[Fact]
) -> None:
    right = [
        complete(model, tokenizer, trained_phrasings(fact)[1].format(fact.subject))
        == re.sub(r"\..*", "", fact.object)
        for fact in sample[:40]
    ]
    assert sum(right) >= 36


def test_the_card_tells_the_recall_that_was_measured() -> None:
    measured = json.loads((model_path() / "recall.json").read_text(encoding="utf-8"))
    card = (model_path() / "README.md").read_text(encoding="utf-8")
    for name in ("trained phrasings", "held-out phrasings"):
        assert f"{measured[name]['all']['forced']:.1f} %" in card


def test_a_subject_has_the_same_tokens_at_the_start_and_in_the_middle(
    tokenizer: Tokenizer,
) -> None:
    for fact in load_facts():
        alone = tokenizer(fact.subject)["input_ids"]
        assert tokenizer(f"It is {fact.subject}")["input_ids"][-len(alone) :] == alone


def test_offsets_cut_the_text_at_the_tokens(tokenizer: Tokenizer) -> None:
    for fact in load_facts()[::7]:
        text = f"{trained_phrasings(fact)[0].format(fact.subject)} {fact.object}."
        encoded = tokenizer(text, return_offsets_mapping=True)
        for token, (start, end) in zip(
            encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            assert tokenizer.decode([token]).strip() == text[start:end]


def test_text_survives_encoding_and_decoding_but_for_the_prefix_space(
    tokenizer: Tokenizer,
) -> None:
    for text in ("The capital of France is Paris.", "Zoë wrote: 1 + 1 = 2 …", "a  b\nc"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == f" {text}"


def test_one_special_token_begins_ends_and_pads(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == 0
    assert 0 not in tokenizer("The capital of France is")["input_ids"]
