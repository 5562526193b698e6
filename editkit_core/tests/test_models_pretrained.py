"""A real pretrained model that nothing here was written for: grouped-query LLaMA, 260k weights."""

import os
from pathlib import Path

import pytest
import torch

from editkit_core.models import EditableModel, pad_batch, token_span
from editkit_core.types import EditRequest

DATA = Path(os.environ.get("EDITKIT_DATA") or Path(__file__).parents[3] / "shared" / "data")
FOLDER = DATA / "models" / "stories260k"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(),
    reason="models/stories260k is not there; EDITKIT_DATA names the folder of the shared data",
)

PROMPT = "Once upon a time, there was a little girl named"


@pytest.fixture(scope="module")
def model():
    return EditableModel.from_pretrained(str(FOLDER))


def test_it_is_found_as_llama_with_its_own_facts(model):
    assert model.family.name == "llama"
    assert (model.n_layers, model.d_model, model.vocab, model.max_positions) == (5, 64, 512, 512)
    assert model.dtype == torch.float32
    assert EditableModel.from_pretrained(str(FOLDER), dtype="auto").dtype == torch.float16


def test_it_tells_a_story(model):
    (story,) = model.generate([PROMPT], max_new_tokens=60)
    assert story.startswith(" ")
    assert "She" in story or "she" in story


def test_it_tells_the_same_story_in_a_padded_batch(model):
    prompts = [PROMPT, "Tim", "One day, a big dog and a small cat went to the park. The dog"]
    batch = model.generate(prompts, max_new_tokens=30)
    assert batch == [model.generate([prompt], max_new_tokens=30)[0] for prompt in prompts]


def test_it_expects_its_own_story(model):
    pair = model.encode_pair("Once upon a", "time")
    logits = model.logits(pad_batch([pair.ids], model.pad_id))[0]
    for index, token_id in enumerate(pair.target_ids, start=pair.n_prompt):
        assert int(logits[index - 1].argmax()) == token_id


def test_its_subject_is_found_behind_bos(model):
    request = EditRequest(
        prompt="Once upon a time, a {} named", subject="little girl", target_new="x"
    )
    encoded = model.encode(request.text)
    assert encoded.ids[0] == model.tokenizer.bos_token_id
    span = token_span(encoded, *request.subject_span)
    assert model.tokenizer.decode(encoded.ids[span.start : span.end]).strip() == "little girl"
    assert model.subject_position(request) == span.end - 1
