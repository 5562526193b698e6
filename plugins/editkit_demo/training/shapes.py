"""The shapes of the demo models: a GPT-2, a LLaMA and a T5, each with random weights from a seed.

A shape decides the architecture, its default sizes, and which parameters are hidden matrices.
What the model reads is in `tasks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import attrs
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

ShapeName = Literal["gpt2", "llama", "t5"]


@attrs.frozen(kw_only=True)
class Settings:
    """Everything that the weights depend on, besides the tables and the machine.

    Attributes:
        shape: The architecture.
        seed: Decides the first weights and every batch.
        steps: Updates of the weights.
        tokens_per_step: Tokens of a batch, padding left out of account.
        vocabulary: Size of the tokenizer.
        layers: Blocks; of the encoder, where there is one.
        decoder_layers: Blocks of the decoder behind an encoder.
        width: Size of the hidden states.
        inner: Inner width of a feed-forward layer.
        heads: Heads of attention.
        kv_heads: Heads of keys and values, where they are shared between heads.
        head_width: Size of a head where it does not follow from width and heads.
        context: Longest text in tokens.
        muon_rate: Learning rate of the hidden matrices.
        adam_rate: Learning rate of everything else.
        weight_decay: Of the hidden matrices.
        warmup: Share of the steps in which the rates rise.
    """

    shape: ShapeName = "gpt2"
    seed: int = 0
    steps: int = 2000
    tokens_per_step: int = 3072
    vocabulary: int = 3584
    layers: int = 6
    decoder_layers: int = 0
    width: int = 224
    inner: int = 1344
    heads: int = 7
    kv_heads: int = 0
    head_width: int = 0
    context: int = 256
    muon_rate: float = 3e-3
    adam_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup: float = 0.02


@attrs.frozen(kw_only=True)
class Shape:
    """An architecture.

    Attributes:
        build: Makes the model; the seed is set before.
        defaults: The settings of the packaged model.
        hidden: Part of the names of parameters that lie in a block.
        about: Tells the sizes of a model from its configuration, for its card.
    """

    build: Callable[[Settings], PreTrainedModel]
    defaults: Settings
    hidden: str
    about: Callable[[PreTrainedModel], str]


def new_model(settings: Settings) -> PreTrainedModel:
    """Return a model of the shape with random weights drawn from the seed."""
    torch.manual_seed(settings.seed)
    return SHAPES[settings.shape].build(settings)


def hidden_matrix(settings: Settings, name: str, parameter: torch.nn.Parameter) -> bool:
    """Tell whether a parameter is a matrix of a block, between hidden states."""
    inside = SHAPES[settings.shape].hidden in name
    return inside and parameter.ndim == 2 and "relative_attention_bias" not in name


def _gpt2(settings: Settings) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=settings.vocabulary,
        n_positions=settings.context,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        n_inner=settings.inner,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    config._attn_implementation = "eager"
    return GPT2LMHeadModel(config)


def _llama(settings: Settings) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        max_position_embeddings=settings.context,
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        intermediate_size=settings.inner,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def _t5(settings: Settings) -> PreTrainedModel:
    config = T5Config(
        vocab_size=settings.vocabulary,
        n_positions=settings.context,
        d_model=settings.width,
        d_kv=settings.head_width,
        d_ff=settings.inner,
        num_layers=settings.layers,
        num_decoder_layers=settings.decoder_layers,
        num_heads=settings.heads,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=64,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    config._attn_implementation = "eager"
    return T5ForConditionalGeneration(config)


def _about_gpt2(model: PreTrainedModel) -> str:
    config = model.config
    return (
        f"{config.n_layer} layers, width {config.n_embd}, {config.n_head} heads, "
        f"inner width {config.n_inner}, context {config.n_positions}"
    )


def _about_llama(model: PreTrainedModel) -> str:
    config = model.config
    return (
        f"{config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads that share {config.num_key_value_heads} heads of keys "
        f"and values, gated feed-forward layers of inner width {config.intermediate_size}, "
        f"RMSNorm, rotary positions, context {config.max_position_embeddings}"
    )


def _about_t5(model: PreTrainedModel) -> str:
    config = model.config
    return (
        f"{config.num_layers} layers of encoder and {config.num_decoder_layers} of decoder, width "
        f"{config.d_model}, {config.num_heads} heads of {config.d_kv}, gated feed-forward layers "
        f"of inner width {config.d_ff}"
    )


SHAPES: Mapping[ShapeName, Shape] = {
    "gpt2": Shape(build=_gpt2, defaults=Settings(), hidden=".h.", about=_about_gpt2),
    "llama": Shape(
        build=_llama,
        defaults=Settings(shape="llama", steps=1600, width=256, inner=832, heads=8, kv_heads=2),
        hidden=".layers.",
        about=_about_llama,
    ),
    "t5": Shape(
        build=_t5,
        defaults=Settings(
            shape="t5",
            steps=900,
            vocabulary=3072,
            layers=4,
            decoder_layers=3,
            width=256,
            inner=448,
            heads=6,
            head_width=32,
        ),
        hidden=".block.",
        about=_about_t5,
    ),
}
