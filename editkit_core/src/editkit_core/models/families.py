"""Where things are in a model: one `Family` a module tree, found from the tree itself.

A family is a set of module path templates. `find_family` takes the families one is given and
returns the one whose paths all exist; ``config.model_type`` only breaks ties between families with
the same tree, so an unlisted model built like LLaMA is edited as ``llama``. Importing this module
imports neither torch nor transformers.

An encoder-decoder has two stacks of blocks, each counted from 0. Wherever a layer is named, the
decoder's is meant unless the stack is said too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import attrs

from editkit_core.errors import UnknownFamilyError, UnsupportedModelError
from editkit_core.types import Site, TokenPosition

if TYPE_CHECKING:
    from torch import nn


Stack = Literal["decoder", "encoder"]
Role = Literal["mlp_down", "attn_out"]
ROLES: tuple[Role, ...] = get_args(Role)


@attrs.frozen(kw_only=True)
class EncoderPaths:
    """Module path templates of an encoder; ``{}`` is the layer number, counted from 0.

    Attributes:
        blocks: A transformer block.
        attentions: A block's attention module; its (first) output is what joins the residual.
        mlps: A block's feed-forward module.
        mlp_downs: The feed-forward down projection: its input is the key, its output the value.
        attention_outs: The attention's output projection; None leaves it without a site.
        mlp_norms: The norm before the feed-forward, if it has one of its own.
        embedding: The token embedding, under the name the encoder calls it by.
        final_norm: The norm after the last block.
        body: The module whose last hidden state the decoder attends to.
    """

    blocks: str
    attentions: str
    mlps: str
    mlp_downs: str
    embedding: str
    final_norm: str
    body: str
    attention_outs: str | None = None
    mlp_norms: str | None = None


@attrs.frozen(kw_only=True)
class Family:
    """Module path templates of one architecture; ``{}`` is the layer number.

    Of an encoder-decoder they are the decoder's, and ``encoder`` has the encoder's.

    Attributes:
        name: The family's id, for example ``gpt2``.
        model_types: Values of ``config.model_type`` that name this family.
        blocks: A transformer block.
        attentions: A block's attention module; its (first) output is what joins the residual.
        mlps: A block's feed-forward module.
        mlp_downs: The feed-forward down projection: its input is the key, its output the value.
        attention_outs: The attention's output projection; None leaves it without a site. A family
            fits without it.
        mlp_norms: The norm before the feed-forward where attention does not read it too.
        embedding: The token embedding, under the name it is called by.
        final_norm: The norm before the head.
        body: The module whose last hidden state feeds the head.
        head: The projection to the vocabulary.
        is_encoder_decoder: Whether the model has an encoder.
        encoder: Where things are in the encoder; None leaves it without sites.
        requires: Further paths that must exist, to tell look-alike trees apart.
        forbids: Paths that must not exist.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    attentions: str
    mlps: str
    mlp_downs: str
    embedding: str
    final_norm: str
    body: str
    head: str = "lm_head"
    attention_outs: str | None = None
    mlp_norms: str | None = None
    is_encoder_decoder: bool = False
    encoder: EncoderPaths | None = None
    requires: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks of blocks that sites can be in, in the order they run."""
        return ("decoder",) if self.encoder is None else ("encoder", "decoder")

    def block(self, layer: int, stack: Stack = "decoder") -> str:
        """Path of a block."""
        return self._paths(stack).blocks.format(layer)

    def attention(self, layer: int, stack: Stack = "decoder") -> str:
        """Path of a block's self-attention module."""
        return self._paths(stack).attentions.format(layer)

    def mlp(self, layer: int, stack: Stack = "decoder") -> str:
        """Path of a block's feed-forward module."""
        return self._paths(stack).mlps.format(layer)

    def mlp_down(self, layer: int, stack: Stack = "decoder") -> str:
        """Path of a block's feed-forward down projection."""
        return self._paths(stack).mlp_downs.format(layer)

    def attention_out(self, layer: int, stack: Stack = "decoder") -> str | None:
        """Path of a block's attention output projection, or None when the family tells none."""
        template = self._paths(stack).attention_outs
        return None if template is None else template.format(layer)

    def mlp_parts(self, layer: int, stack: Stack = "decoder") -> tuple[str, ...]:
        """Paths of all that belongs to a block's feed-forward alone: it and its own norm."""
        norms = self._paths(stack).mlp_norms
        own = () if norms is None else (norms.format(layer),)
        return (self.mlp(layer, stack), *own)

    def site(
        self,
        layer: int,
        token: TokenPosition = "subject_last",
        stack: Stack = "decoder",
        role: Role = "mlp_down",
    ) -> Site:
        """A projection of a layer as an edit site; ``layer`` counts within its stack.

        Raises:
            UnsupportedModelError: The family does not say where the attention's is.
        """
        path = self.mlp_down if role == "mlp_down" else self.attention_out
        module = path(layer, stack)
        if module is None:
            raise UnsupportedModelError(
                f"The family {self.name} does not say where the attention's output projection is. "
                "Register it with attention_outs, or edit the feed-forward.",
                family=self.name,
            )
        return Site(
            module=module, parameter=f"{module}.weight", role=role, layer=layer, token=token
        )

    def stack_of(self, module: str) -> Stack | None:
        """Which stack of blocks a module path lies in, or None when it lies in neither."""
        for stack in self.stacks:
            before, _, after = self._paths(stack).blocks.partition("{}")
            rest = module.removeprefix(before)
            number = rest[: len(rest) - len(rest.lstrip("0123456789"))]
            inside = module.startswith(before) and number
            if inside and f"{module}.".startswith(f"{before}{number}{after}."):
                return stack
        return None

    def count_layers(self, paths: Iterable[str], stack: Stack = "decoder") -> int:
        """Number of consecutive blocks of a stack, from 0, among the module ``paths``."""
        known = paths if isinstance(paths, (set, frozenset)) else set(paths)
        layer = 0
        while self.block(layer, stack) in known:
            layer += 1
        return layer

    def misfit(self, paths: frozenset[str]) -> str | None:
        """What keeps a tree of module ``paths`` from being this family, or None when it fits."""
        for stack in self.stacks:
            layers = self.count_layers(paths, stack)
            if layers == 0:
                return f"no {self.block(0, stack)}"
            for path in self._needed(layers, stack):
                if path not in paths:
                    return f"no {path}"
        for template in self.forbids:
            if template.format(0) in paths:
                return f"has {template.format(0)}"
        return None

    def _needed(self, layers: int, stack: Stack) -> Iterator[str]:
        known = self._paths(stack)
        yield from (known.embedding, known.final_norm, known.body, self.head)
        for layer in range(layers):
            for template in (known.attentions, known.mlps, known.mlp_downs):
                yield template.format(layer)
            if stack == "decoder":
                yield from (template.format(layer) for template in self.requires)

    def _paths(self, stack: Stack) -> Family | EncoderPaths:
        if stack == "decoder":
            return self
        if self.encoder is None:
            raise UnsupportedModelError(
                f"The family {self.name} has no encoder. Leave the stack out, or say 'decoder'.",
                family=self.name,
            )
        return self.encoder


def find_family(model: nn.Module, families: Sequence[Family]) -> Family:
    """Return the family whose module paths the model has.

    Args:
        model: A Hugging Face model with its head.
        families: The registered families, in order of preference.

    Raises:
        UnknownFamilyError: No family fits; the message says what each of them looked for.
    """
    paths = frozenset(name for name, _ in model.named_modules(remove_duplicate=False))
    config = getattr(model, "config", None)
    model_type = str(getattr(config, "model_type", ""))
    has_encoder = bool(getattr(config, "is_encoder_decoder", False))
    misfits: dict[str, str] = {}
    fitting = []
    for family in families:
        misfit = family.misfit(paths)
        if misfit is None and family.is_encoder_decoder != has_encoder:
            misfit = "encoder-decoder" if has_encoder else "no encoder"
        if misfit is None:
            fitting.append(family)
        else:
            misfits[family.name] = misfit
    for family in fitting:
        if model_type in family.model_types:
            return family
    if fitting:
        return fitting[0]
    looked_for = "; ".join(f"{name}: {why}" for name, why in misfits.items()) or "none registered"
    found = ", ".join(sorted({_two_levels(path) for path in paths if path}))
    raise UnknownFamilyError(
        f"No model family fits {type(model).__name__} (model_type {model_type!r}). Looked for "
        f"({looked_for}). Found the modules: {found}. Register a Family for it with the hook "
        "editkit_register_model_families, or load another model.",
        model_type=model_type,
        looked_for=misfits,
        found=found,
    )


def _two_levels(path: str) -> str:
    return ".".join(path.split(".")[:2])


def _llama_like(name: str, *model_types: str, query_norm: bool = False) -> Family:
    query_norms = ("model.layers.{}.self_attn.q_norm",)
    return Family(
        name=name,
        model_types=model_types,
        blocks="model.layers.{}",
        attentions="model.layers.{}.self_attn",
        mlps="model.layers.{}.mlp",
        mlp_downs="model.layers.{}.mlp.down_proj",
        attention_outs="model.layers.{}.self_attn.o_proj",
        mlp_norms="model.layers.{}.post_attention_layernorm",
        embedding="model.embed_tokens",
        final_norm="model.norm",
        body="model",
        requires=query_norms if query_norm else (),
        forbids=() if query_norm else query_norms,
    )


def _gpt_like(name: str, down: str, out: str, requires: str, norm: str | None) -> Family:
    return Family(
        name=name,
        model_types=(name,),
        blocks="transformer.h.{}",
        attentions="transformer.h.{}.attn",
        mlps="transformer.h.{}.mlp",
        mlp_downs=f"transformer.h.{{}}.mlp.{down}",
        attention_outs=f"transformer.h.{{}}.attn.{out}",
        mlp_norms=None if norm is None else f"transformer.h.{{}}.{norm}",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        body="transformer",
        requires=(requires,),
    )


def _t5(name: str, *model_types: str) -> Family:
    return Family(
        name=name,
        model_types=model_types,
        blocks="decoder.block.{}",
        attentions="decoder.block.{}.layer.0.SelfAttention",
        mlps="decoder.block.{}.layer.2.DenseReluDense",
        mlp_downs="decoder.block.{}.layer.2.DenseReluDense.wo",
        attention_outs="decoder.block.{}.layer.0.SelfAttention.o",
        mlp_norms="decoder.block.{}.layer.2.layer_norm",
        embedding="decoder.embed_tokens",
        final_norm="decoder.final_layer_norm",
        body="decoder",
        is_encoder_decoder=True,
        encoder=EncoderPaths(
            blocks="encoder.block.{}",
            attentions="encoder.block.{}.layer.0.SelfAttention",
            mlps="encoder.block.{}.layer.1.DenseReluDense",
            mlp_downs="encoder.block.{}.layer.1.DenseReluDense.wo",
            attention_outs="encoder.block.{}.layer.0.SelfAttention.o",
            mlp_norms="encoder.block.{}.layer.1.layer_norm",
            embedding="encoder.embed_tokens",
            final_norm="encoder.final_layer_norm",
            body="encoder",
        ),
    )


BUILTIN_FAMILIES: tuple[Family, ...] = (
    _gpt_like(
        "gpt2", down="c_proj", out="c_proj", norm="ln_2", requires="transformer.h.{}.attn.c_attn"
    ),
    _gpt_like(
        "gpt_neo",
        down="c_proj",
        out="attention.out_proj",
        norm="ln_2",
        requires="transformer.h.{}.attn.attention",
    ),
    _gpt_like(
        "gptj", down="fc_out", out="out_proj", norm=None, requires="transformer.h.{}.attn.q_proj"
    ),
    _llama_like("llama", "llama"),
    _llama_like("mistral", "mistral"),
    _llama_like("qwen2", "qwen2"),
    _llama_like("qwen3", "qwen3", query_norm=True),
    _t5("t5", "t5", "mt5", "umt5"),
)
