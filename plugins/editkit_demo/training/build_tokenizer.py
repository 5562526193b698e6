"""Train the byte-level BPE tokenizer on the corpus.

A prefix space is always put in front, so a subject has the same tokens at the start of a
text as in the middle; otherwise recall at the start is much lower.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from corpus import END_OF_TEXT, Corpus
from prose import every_word
from questions import Questions
from shapes import Settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, END_OF_ANSWER = "<pad>", "</s>"
_DOCUMENTS = 6000
_QUESTIONS = 30_000
_TEXT_TOKENS = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END_OF_TEXT)
_QUESTION_TOKENS = {"pad_token": PAD, "eos_token": END_OF_ANSWER, "unk_token": END_OF_ANSWER}


def build_tokenizer(folder: Path, settings: Settings) -> None:
    """Train a tokenizer on seeded documents and save it so that AutoTokenizer loads it."""
    asks = settings.shape == "t5"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[PAD, END_OF_ANSWER] if asks else [END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = _questions(settings.seed) if asks else _texts(Corpus(), settings.seed)
    tokenizer.train_from_iterator(texts, trainer)
    if asks:
        _end_every_text(tokenizer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=settings.context,
        clean_up_tokenization_spaces=False,
        **(_QUESTION_TOKENS if asks else _TEXT_TOKENS),
    )
    fast.save_pretrained(folder)
    _name_the_class(folder / "tokenizer_config.json")


def _end_every_text(tokenizer: Tokenizer) -> None:
    """Put `</s>` behind questions and answers alike, as T5's own tokenizer does."""
    end = tokenizer.token_to_id(END_OF_ANSWER)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"$A {END_OF_ANSWER}",
                pair=f"$A {END_OF_ANSWER} $B {END_OF_ANSWER}",
                special_tokens=[(END_OF_ANSWER, end)],
            ),
        ]
    )


def _name_the_class(path: Path) -> None:
    """Write the class name that older releases of transformers know too."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _texts(corpus: Corpus, seed: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer:{seed}")
    yield from every_word()
    for fact in corpus.facts:
        yield f"{fact.subject} {fact.object}."
    for _ in range(_DOCUMENTS):
        yield " ".join(sentence.text for sentence in corpus.document(rng))


def _questions(seed: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer:questions:{seed}")
    asked = Questions()
    yield from every_word()
    for fact in asked.facts:
        yield f"{fact.subject} {fact.object}"
    for _ in range(_QUESTIONS):
        drawn = asked.draw(rng)
        yield drawn.source
        yield drawn.answer
