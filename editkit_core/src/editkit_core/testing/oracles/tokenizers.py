"""Tokenizers of every style, each of which spells a word of the oracle's world with one token.

Special tokens, word starts and padding differ; the words do not. So a target of three words has
three tokens everywhere, and whoever tokenises it without its space gets other ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Literal

import attrs
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

__all__ = ["Style", "make_tokenizer"]

STOP = "."  # one token, right behind a word
Kind = Literal["bpe", "unigram", "wordpiece"]
_UNKNOWN, _BOS, _EOS, _PAD = "<unk>", "<s>", "</s>", "<pad>"


@attrs.frozen(kw_only=True)
class Style:
    """How a tokenizer marks words and texts.

    Attributes:
        kind: Byte-level BPE, Unigram with ``▁`` or WordPiece with ``##``.
        bos: Whether it puts BOS first.
        eos: Whether it puts EOS last, as T5, BART and BERT do.
        prefix_space: Whether a text's first word is spelled as after a space.
    """

    kind: Kind
    bos: bool = False
    eos: bool = False
    prefix_space: bool = False


TOKENIZER_STYLES: Mapping[str, Style] = {
    "bpe": Style(kind="bpe"),
    "bpe_bos": Style(kind="bpe", bos=True),
    "bpe_prefix_space": Style(kind="bpe", prefix_space=True),
    "bpe_bos_eos": Style(kind="bpe", bos=True, eos=True),
    "unigram_bos": Style(kind="unigram", bos=True, prefix_space=True),
    "unigram_eos": Style(kind="unigram", eos=True, prefix_space=True),
    "wordpiece": Style(kind="wordpiece", bos=True, eos=True),
}


@cache
def make_tokenizer(
    name: str, words: tuple[str, ...], eos_as_pad: bool = False, eos_as_bos: bool = False
) -> PreTrainedTokenizerFast:
    """Make a tokenizer of a style.

    Args:
        name: A name of `TOKENIZER_STYLES`.
        words: The words that are to be one token each.
        eos_as_pad: Whether EOS is padding too.
        eos_as_bos: Whether EOS is BOS too, as in GPT-2.
    """
    style = TOKENIZER_STYLES[name]
    bos, pad = _EOS if eos_as_bos else _BOS, _EOS if eos_as_pad else _PAD
    tokenizer = _MAKERS[style.kind](words, style.prefix_space)
    tokenizer.add_special_tokens([_UNKNOWN, _BOS, _EOS, _PAD])
    if style.bos or style.eos:
        ids = {token: tokenizer.token_to_id(token) for token in (bos, _EOS)}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{f'{bos} ' if style.bos else ''}$A{f' {_EOS}' if style.eos else ''}",
            special_tokens=list(ids.items()),
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=_EOS, pad_token=pad, unk_token=_UNKNOWN
    )
    made.name_or_path = f"oracle-{name}"
    return made


def _byte_level_bpe(words: Sequence[str], prefix_space: bool) -> Tokenizer:
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Each after a space, so that only with its space a word is one token.
    tokenizer.train_from_iterator([f" {word}" for word in words], trainer)
    return tokenizer


def _unigram(words: Sequence[str], prefix_space: bool) -> Tokenizer:
    letters = sorted({letter for word in words for letter in word} | {"▁", STOP})
    pieces = [(_UNKNOWN, 0.0), *((letter, -20.0) for letter in letters)]
    pieces += [(f"▁{word}", -1.0) for word in words]
    tokenizer = Tokenizer(token_models.Unigram(pieces, unk_id=0))
    scheme: Literal["always", "never"] = "always" if prefix_space else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tokenizer


def _wordpiece(words: Sequence[str], prefix_space: bool) -> Tokenizer:
    letters = sorted({letter for word in words for letter in word} | {STOP})
    entries = [_UNKNOWN, *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(token_models.WordPiece(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


_MAKERS: Mapping[Kind, Callable[[Sequence[str], bool], Tokenizer]] = {
    "bpe": _byte_level_bpe,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}
