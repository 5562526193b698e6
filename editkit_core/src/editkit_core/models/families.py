"""Where things are in a model: one `Family` a module tree, found from the tree itself.

A family is a set of module path templates. `find_family` takes the families one is given and
returns the one whose paths all exist; ``config.model_type`` only breaks ties between families with
the same tree, so an unlisted model built like LLaMA is edited as ``llama``. Importing this module
imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from editkit_core.errors import UnknownFamilyError
from editkit_core.types import Site, TokenPosition

if TYPE_CHECKING:
    from torch import nn


@attrs.frozen(kw_only=True)
class Family:
    """Module path templates of one architecture; ``{}`` is the layer number.

    Attributes:
        name: The family's id, for example ``gpt2``.
        model_types: Values of ``config.model_type`` that name this family.
        blocks: A transformer block.
        attentions: A block's attention module; its (first) output is what joins the residual.
        mlps: A block's feed-forward module.
        mlp_downs: The feed-forward down projection: its input is the key, its output the value.
        embedding: The token embedding.
        final_norm: The norm before the head.
        body: The module whose last hidden state feeds the head.
        head: The projection to the vocabulary.
        is_encoder_decoder: Whether the model has an encoder.
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
    is_encoder_decoder: bool = False
    requires: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()

    def block(self, layer: int) -> str:
        """Path of a block."""
        return self.blocks.format(layer)

    def attention(self, layer: int) -> str:
        """Path of a block's attention module."""
        return self.attentions.format(layer)

    def mlp(self, layer: int) -> str:
        """Path of a block's feed-forward module."""
        return self.mlps.format(layer)

    def mlp_down(self, layer: int) -> str:
        """Path of a block's feed-forward down projection."""
        return self.mlp_downs.format(layer)

    def site(self, layer: int, token: TokenPosition = "subject_last") -> Site:
        """The down projection of a layer as an edit site."""
        module = self.mlp_down(layer)
        return Site(
            module=module, parameter=f"{module}.weight", role="mlp_down", layer=layer, token=token
        )

    def count_layers(self, paths: Iterable[str]) -> int:
        """Number of consecutive blocks, from 0, among the module ``paths``."""
        known = paths if isinstance(paths, (set, frozenset)) else set(paths)
        layer = 0
        while self.block(layer) in known:
            layer += 1
        return layer

    def misfit(self, paths: frozenset[str]) -> str | None:
        """What keeps a tree of module ``paths`` from being this family, or None when it fits."""
        layers = self.count_layers(paths)
        if layers == 0:
            return f"no {self.block(0)}"
        for path in self._needed(layers):
            if path not in paths:
                return f"no {path}"
        for template in self.forbids:
            if template.format(0) in paths:
                return f"has {template.format(0)}"
        return None

    def _needed(self, layers: int) -> Iterator[str]:
        yield from (self.embedding, self.final_norm, self.body, self.head)
        for layer in range(layers):
            yield from (self.attention(layer), self.mlp(layer), self.mlp_down(layer))
            yield from (template.format(layer) for template in self.requires)


def find_family(model: nn.Module, families: Sequence[Family]) -> Family:
    """Return the family whose module paths the model has.

    Args:
        model: A Hugging Face model with its head.
        families: The registered families, in order of preference.

    Raises:
        UnknownFamilyError: No family fits; the message says what each of them looked for.
    """
    paths = frozenset(name for name, _ in model.named_modules())
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
        embedding="model.embed_tokens",
        final_norm="model.norm",
        body="model",
        requires=query_norms if query_norm else (),
        forbids=() if query_norm else query_norms,
    )


def _gpt_like(name: str, down: str, requires: str) -> Family:
    return Family(
        name=name,
        model_types=(name,),
        blocks="transformer.h.{}",
        attentions="transformer.h.{}.attn",
        mlps="transformer.h.{}.mlp",
        mlp_downs=f"transformer.h.{{}}.mlp.{down}",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        body="transformer",
        requires=(requires,),
    )


BUILTIN_FAMILIES: tuple[Family, ...] = (
    _gpt_like("gpt2", "c_proj", requires="transformer.h.{}.attn.c_attn"),
    _gpt_like("gpt_neo", "c_proj", requires="transformer.h.{}.attn.attention"),
    _gpt_like("gptj", "fc_out", requires="transformer.h.{}.attn.q_proj"),
    _llama_like("llama", "llama"),
    _llama_like("mistral", "mistral"),
    _llama_like("qwen2", "qwen2"),
    _llama_like("qwen3", "qwen3", query_norm=True),
)
