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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 3584
_DOCUMENTS = 6000


def build_tokenizer(corpus: Corpus, folder: Path, *, seed: int, context: int) -> None:
    """Train a tokenizer on seeded documents and save it so that AutoTokenizer loads it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(corpus, seed), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    _name_the_class(folder / "tokenizer_config.json")


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
