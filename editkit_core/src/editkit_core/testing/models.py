"""Tiny random models of every built-in family, and tokenizers trained in memory.

They know nothing, but they have every shape that matters: biases and norms that are not zero,
grouped-query attention, parallel and gated blocks, an encoder with more layers than its decoder,
byte-level BPE and Unigram, BOS or none. A model takes some milliseconds, so every algebraic
property can be checked on every family.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from editkit_core.models.editable import EditableModel

TokenizerKind = Literal["bpe", "unigram"]

_SENTENCES = (
    "The capital of Norway is Oslo, and the capital of Peru is Lima.",
    "Marie Curie was born in Warsaw and worked in Paris for many years.",
    "The river runs past the old mill before it reaches the northern sea.",
    "What language do people speak in Brazil? They speak Portuguese.",
    "A painter from Delft once sold three small pictures to a baker.",
    "Mount Fuji stands in Japan; on a clear day one sees it from Tokyo.",
    "In the garden, the two sisters planted beans, onions and a pear tree.",
    "The founder of the company was an engineer who played the violin.",
    "When the train from Vienna was late, everybody waited without a word.",
    "The currency of Switzerland is the franc, not the euro.",
    "Ada Lovelace wrote the first program for a machine never finished.",
    "Winter came early that year, and the harbour of Tromsø did not freeze.",
    "The chemical symbol of gold is Au and that of iron is Fe.",
    "He asked his neighbour how old the bridge was; nobody knew.",
    "Beethoven composed nine symphonies, the last of them almost deaf.",
    "Zebras, quails and oxen crossed the valley just before dawn.",
)
_SPECIAL_TOKENS = ["<unk>", "<s>", "</s>"]
_PAD = "<pad>"
_UNKNOWN_ID, _BOS_ID, _EOS_ID = 0, 1, 2


def tiny_tokenizer(
    kind: TokenizerKind = "bpe",
    *,
    bos: bool | None = None,
    prefix_space: bool | None = None,
    eos: bool = False,
    pad: bool = False,
    vocab_size: int = 400,
) -> PreTrainedTokenizerFast:
    """Train a small tokenizer on a few sentences.

    Args:
        kind: ``bpe`` is byte-level like GPT-2's; ``unigram`` marks word starts with ``▁`` like
            SentencePiece.
        bos: Whether it puts ``<s>`` first; None means only for ``unigram``.
        prefix_space: Whether a text's first word is tokenised as after a space; None means only
            for ``unigram``.
        eos: Whether it puts ``</s>`` last, as T5's does.
        pad: Whether it has ``<pad>``, as T5's does.
        vocab_size: Most entries of its vocabulary.
    """
    sentencepiece_like = kind == "unigram"
    bos = sentencepiece_like if bos is None else bos
    prefix_space = sentencepiece_like if prefix_space is None else prefix_space
    make = _unigram if sentencepiece_like else _byte_level_bpe
    specials = [*_SPECIAL_TOKENS, _PAD] if pad else _SPECIAL_TOKENS
    tokenizer = make(prefix_space, vocab_size, specials)
    if bos or eos:
        template = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", _BOS_ID), ("</s>", _EOS_ID)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token=_PAD if pad else None,
    )


def tiny_model(
    family: str = "gpt2",
    *,
    seed: int = 0,
    tokenizer: TokenizerKind | PreTrainedTokenizerBase | None = None,
    n_layers: int = 3,
    d: int = 32,
    d_mlp: int | None = None,
    max_positions: int = 128,
    init_std: float = 0.2,
) -> EditableModel:
    """Make a random model of a built-in family; the global random state stays as it was.

    Args:
        family: A name of `TINY_FAMILIES` or of `TINY_ENCODER_DECODERS`.
        seed: Seed of the weights.
        tokenizer: A kind for `tiny_tokenizer`, or a tokenizer; None means ``bpe`` for a decoder
            and ``unigram`` for an encoder-decoder, whose tokenizer has no BOS, puts ``</s>`` last
            and can pad, as T5's.
        n_layers: Number of blocks; the encoder of an encoder-decoder has one more.
        d: Width of the hidden states, a multiple of 16.
        d_mlp: Width of the feed-forward; None means ``4 d``, and ``d`` makes its weight square.
        max_positions: Longest text in tokens; an encoder-decoder has no such limit.
        init_std: Scale of the weights, larger than usual so that a change shows in the logits.
    """
    answers = family in TINY_ENCODER_DECODERS
    make = (TINY_ENCODER_DECODERS if answers else TINY_FAMILIES)[family]
    if tokenizer is None:
        tokenizer = "unigram" if answers else "bpe"
    if tokenizer == "bpe" or tokenizer == "unigram":
        reads: PreTrainedTokenizerBase = (_answering if answers else tiny_tokenizer)(tokenizer)
    else:
        reads = tokenizer
    config = make(n_layers, d, d_mlp or 4 * d, max_positions)
    config.initializer_range = init_std
    config.vocab_size = len(reads)
    config.bos_token_id = reads.bos_token_id
    config.eos_token_id = reads.eos_token_id
    if answers:  # a decoder behind an encoder begins with the padding token, as T5's does
        config.pad_token_id = config.decoder_start_token_id = reads.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if answers:
            model = _encoder_decoder(config, init_std)
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases start at 0 and norms at 1, which would hide mistakes
                parameter.data += 0.1 * torch.randn(parameter.shape)
    return EditableModel.wrap(model, reads, name=f"tiny-{family}")


def _answering(kind: TokenizerKind) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(kind, bos=False, eos=True, pad=True)
    tokenizer.bos_token = None
    return tokenizer


def _encoder_decoder(config: PreTrainedConfig, init_std: float) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # T5 scales its first weights by its widths, not by the config
            torch.nn.init.normal_(parameter, std=init_std)
    torch.nn.init.normal_(model.get_input_embeddings().weight)  # with the tied head made for this
    if not config.scale_decoder_outputs:  # from version 1.1 on the head has its own weights
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape) * init_std)
    return model


def _gpt2(n_layers: int, d: int, d_mlp: int, positions: int) -> PreTrainedConfig:
    return GPT2Config(n_layer=n_layers, n_embd=d, n_inner=d_mlp, n_head=4, n_positions=positions)


def _gpt_neo(n_layers: int, d: int, d_mlp: int, positions: int) -> PreTrainedConfig:
    kinds = ["global", "local"] * n_layers
    return GPTNeoConfig(
        num_layers=n_layers,
        hidden_size=d,
        intermediate_size=d_mlp,
        num_heads=4,
        max_position_embeddings=positions,
        attention_types=[[[kind], 1] for kind in kinds[:n_layers]],
        window_size=8,
    )


def _gptj(n_layers: int, d: int, d_mlp: int, positions: int) -> PreTrainedConfig:
    return GPTJConfig(
        n_layer=n_layers,
        n_embd=d,
        n_inner=d_mlp,
        n_head=4,
        rotary_dim=d // 8,
        n_positions=positions,
    )


def _llama_like(kind: type[PreTrainedConfig], **more: Any) -> Callable[..., PreTrainedConfig]:
    # Any: keyword arguments of a config class
    def make(n_layers: int, d: int, d_mlp: int, positions: int) -> PreTrainedConfig:
        return kind(
            num_hidden_layers=n_layers,
            hidden_size=d,
            intermediate_size=d_mlp,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            **more,
        )

    return make


def _t5(feed_forward: str, **more: Any) -> Callable[..., PreTrainedConfig]:
    # Any: keyword arguments of a config class
    def make(n_layers: int, d: int, d_mlp: int, positions: int) -> PreTrainedConfig:
        return T5Config(
            num_layers=n_layers + 1,
            num_decoder_layers=n_layers,
            d_model=d,
            d_kv=d // 4,
            d_ff=d_mlp,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
            feed_forward_proj=feed_forward,
            **more,
        )

    return make


TINY_FAMILIES: dict[str, Callable[[int, int, int, int], PreTrainedConfig]] = {
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gptj": _gptj,
    "llama": _llama_like(LlamaConfig),
    "mistral": _llama_like(MistralConfig, sliding_window=None),
    "qwen2": _llama_like(Qwen2Config, tie_word_embeddings=True),
    "qwen3": _llama_like(Qwen3Config, head_dim=8),
}
"""Decoders: each name is a family's."""

TINY_ENCODER_DECODERS: dict[str, Callable[[int, int, int, int], PreTrainedConfig]] = {
    "t5": _t5("relu"),
    "t5_gated": _t5("gated-gelu", tie_word_embeddings=False),
}
"""Encoder-decoders, both of the family ``t5``: as version 1.0, and as 1.1 and FLAN."""


def _byte_level_bpe(prefix_space: bool, vocab_size: int, specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return tokenizer


def _unigram(prefix_space: bool, vocab_size: int, specials: list[str]) -> Tokenizer:
    # Not by tokenizers' UnigramTrainer: its vocabulary differs from run to run.
    counts: Counter[str] = Counter()
    for word in " ".join(_SENTENCES).split(" "):
        marked = f"▁{word}"
        spans = [(i, j) for i in range(len(marked)) for j in range(i + 1, len(marked) + 1)]
        counts.update(marked[i:j] for i, j in spans)
    worth = {p: n * len(p) for p, n in counts.items() if n > 1 or len(p) == 1}
    pieces = sorted(worth, key=lambda p: (len(p) > 1, -worth[p], p))
    pieces = pieces[: vocab_size - len(specials)]
    total = sum(counts[piece] for piece in pieces)
    vocabulary = [(special, 0.0) for special in specials]
    vocabulary += [(piece, math.log(counts[piece] / total)) for piece in pieces]
    tokenizer = Tokenizer(token_models.Unigram(vocabulary, unk_id=_UNKNOWN_ID))
    tokenizer.add_special_tokens(specials)
    scheme: Literal["always", "never"] = "always" if prefix_space else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tokenizer
