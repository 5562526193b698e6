"""The training text and the trainer: nothing held out is shown, a run resumes exactly."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from editkit_demo import model_path
from editkit_demo.facts import (
    held_out_phrasing,
    held_out_question,
    load_facts,
    load_two_hop,
)

_TRAINING = Path(__file__).parents[1] / "training"


@pytest.fixture(scope="module")
def corpus() -> Iterator[ModuleType]:
    sys.path.insert(0, str(_TRAINING))
    import corpus

    yield corpus
    sys.path.remove(str(_TRAINING))


@pytest.fixture(scope="module")
def train(corpus: ModuleType) -> ModuleType:
    import train

    return train


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


def test_a_held_out_phrasing_is_never_in_the_corpus_for_its_fact(corpus: ModuleType) -> None:
    rng = random.Random(1)
    made = corpus.Corpus()
    leads = {sentence.lead for _ in range(5000) for sentence in made.document(rng)}
    forbidden = {held_out_phrasing(fact).format(fact.subject) for fact in load_facts()}
    assert not leads & forbidden


def test_a_held_out_second_hop_is_never_in_the_corpus(corpus: ModuleType) -> None:
    rng = random.Random(2)
    made = corpus.Corpus()
    leads = {sentence.lead for _ in range(5000) for sentence in made.document(rng)}
    assert leads & {hop.prompt for hop in load_two_hop() if not hop.held_out}
    assert not leads & {hop.prompt for hop in load_two_hop() if hop.held_out}


def test_the_tokens_of_a_document_are_those_of_its_text(
    corpus: ModuleType, tokenizer: PreTrainedTokenizerBase
) -> None:
    rng = random.Random(3)
    encoder = corpus.Encoder(tokenizer)
    for _ in range(200):
        sentences = corpus.Corpus().document(rng)
        ids, weights = encoder.document(sentences)
        text = " ".join(sentence.text for sentence in sentences)
        assert ids == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert len(weights) == len(ids)


def test_the_batch_of_a_step_depends_on_seed_and_step_alone(
    corpus: ModuleType, tokenizer: PreTrainedTokenizerBase
) -> None:
    made = corpus.Corpus()

    def draw(seed: int, step: int) -> object:
        encoder = corpus.Encoder(tokenizer)
        return corpus.batch(made, encoder, seed=seed, step=step, tokens=512)

    assert draw(0, 7) == draw(0, 7)
    assert draw(0, 7) != draw(0, 8)
    assert draw(0, 7) != draw(1, 7)


def test_a_window_begins_with_a_document_and_is_full(
    corpus: ModuleType, tokenizer: PreTrainedTokenizerBase
) -> None:
    encoder = corpus.Encoder(tokenizer)
    rows, weights = corpus.batch(corpus.Corpus(), encoder, seed=0, step=0, tokens=1024)
    assert len({len(row) for row in rows + weights}) == 1
    assert all(row[0] != tokenizer.eos_token_id for row in rows)


@pytest.fixture(scope="module")
def question_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path("demo-t5"))


def test_a_held_out_question_is_never_drawn_for_its_fact(corpus: ModuleType) -> None:
    import questions

    rng = random.Random(4)
    made = questions.Questions()
    drawn = {made.draw(rng).source for _ in range(20_000)}
    assert not drawn & {held_out_question(fact).format(fact.subject) for fact in load_facts()}
    assert drawn & {hop.question for hop in load_two_hop() if not hop.held_out}
    assert not drawn & {hop.question for hop in load_two_hop() if hop.held_out}


def test_a_batch_of_questions_has_its_tokens_and_depends_on_seed_and_step_alone(
    corpus: ModuleType, question_tokenizer: PreTrainedTokenizerBase
) -> None:
    import questions

    def draw(seed: int, step: int) -> tuple[list[list[int]], list[list[int]]]:
        encoder = questions.QuestionEncoder(question_tokenizer)
        made = questions.Questions()
        return questions.question_batch(made, encoder, seed=seed, step=step, tokens=512)

    sources, answers = draw(0, 7)
    assert (sources, answers) == draw(0, 7) != draw(0, 8)
    assert draw(0, 7) != draw(1, 7)
    assert len(sources) == len(answers)
    assert 512 <= sum(map(len, sources + answers)) < 512 + 128
    assert all(row[-1] == question_tokenizer.eos_token_id for row in sources + answers)


def test_a_decoder_is_given_the_answer_one_place_to_the_right(train: ModuleType) -> None:
    import recall

    labels = recall.padded([[5, 6, 1], [7, 1]], -100)
    assert labels.tolist() == [[5, 6, 1], [7, 1, -100]]
    assert recall.after_start(labels).tolist() == [[0, 5, 6], [0, 7, 1]]


TINY = {
    "gpt2": {"layers": 1, "width": 32, "inner": 64, "heads": 2, "context": 256},
    "llama": {"layers": 1, "width": 32, "inner": 64, "heads": 2, "kv_heads": 1},
    "t5": {
        "layers": 1,
        "decoder_layers": 1,
        "width": 32,
        "inner": 64,
        "heads": 2,
        "head_width": 16,
        "vocabulary": 3072,
    },
}


@pytest.mark.parametrize("shape", TINY)
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    train: ModuleType,
    tokenizer: PreTrainedTokenizerBase,
    question_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    shape: str,
) -> None:
    reads = question_tokenizer if shape == "t5" else tokenizer
    settings = train.Settings(shape=shape, steps=6, tokens_per_step=256, **TINY[shape])
    whole = train.Trainer(settings, reads, tmp_path)
    for _ in range(6):
        whole.train_one_step()
    stopped = train.Trainer(settings, reads, tmp_path)
    for _ in range(3):
        stopped.train_one_step()
    stopped.save()
    resumed = train.Trainer(settings, reads, tmp_path)
    resumed.load()
    for _ in range(3):
        resumed.train_one_step()
    for name, weight in whole.model.state_dict().items():
        assert weight.equal(resumed.model.state_dict()[name]), name


def test_the_packaged_models_have_the_sizes_of_their_shapes(train: ModuleType) -> None:
    sizes = {}
    for name, shape in train.SHAPES.items():
        model = train.new_model(shape.defaults)
        sizes[name] = sum(p.numel() for p in model.parameters()) / 1e6
    assert {name: round(size, 1) for name, size in sizes.items()} == {
        "gpt2": 5.7,
        "llama": 5.7,
        "t5": 5.2,
    }


def test_a_checkpoint_of_other_settings_is_refused(
    train: ModuleType, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tiny = {"layers": 1, "width": 32, "inner": 64, "heads": 2}
    train.Trainer(train.Settings(steps=6, **tiny), tokenizer, tmp_path).save()
    other = train.Trainer(train.Settings(steps=7, **tiny), tokenizer, tmp_path)
    with pytest.raises(SystemExit, match="give the same options"):
        other.load()
