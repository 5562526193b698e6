"""Codebooks on tiny models, and what they must come to: outputs set by hand at known places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from editkit_core.models.editable import EditableModel
from editkit_core.models.families import Stack
from editkit_core.models.pairs import decoder_start, source_ids
from editkit_core.models.trace import record
from editkit_core.patch import Codebook, CodebookEntry, MethodRef, Patch, base_fingerprint
from editkit_core.patch.kinds.codebook import Replacement, label_of
from editkit_core.testing import TINY_ENCODER_DECODERS, TINY_FAMILIES
from editkit_core.types import Site

PLACES: list[tuple[str, Stack]] = [
    *((family, "decoder") for family in TINY_FAMILIES),
    *((family, stack) for family in TINY_ENCODER_DECODERS for stack in ("encoder", "decoder")),
]
REPLACEMENTS: list[Replacement] = ["replace_last", "replace_prompt", "replace_all"]
PROMPTS = ["The capital of Norway is", "Beethoven composed", "He asked his neighbour how old"]


def ids_of(model: EditableModel, prompt: str) -> tuple[int, ...]:
    return source_ids(model, prompt) if model.is_encoder_decoder else model.encode(prompt).ids


def site_of(model: EditableModel, stack: Stack = "decoder", layer: int = 1) -> Site:
    return model.site(layer, "last", stack=stack)


@torch.no_grad()
def key_of(model: EditableModel, site: Site, prompt: str) -> np.ndarray[Any, Any]:
    """The module's input where a prompt is decided, from a forward pass of its own."""
    ids = torch.tensor([ids_of(model, prompt)])
    inputs = {"input_ids": ids}
    if model.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[decoder_start(model)]])
    with record(model.model, [site.module], inputs=True) as states:
        model.model(**inputs, use_cache=False)
    column = -1 if not site.module.startswith("decoder.") else 0
    return np.asarray(states[site.module][0, column].float().numpy())


def codebook_of(
    model: EditableModel,
    prompts: Sequence[str] = PROMPTS[:1],
    *,
    site: Site,
    eps: float = 0.05,
    size: float = 3.0,
    replacement: Replacement = "replace_last",
    seed: int = 0,
) -> Codebook:
    """A row a prompt, each with a random value, a label of its own and a ball of radius eps."""
    d_out = int(model.weight(site).shape[0])
    values = np.random.default_rng(seed).normal(0, size, (len(prompts), d_out))
    return Codebook(
        keys=np.stack([key_of(model, site, prompt) for prompt in prompts]),
        values=values,
        radii=np.full(len(prompts), eps),
        labels=np.stack([label_of([seed, i]) for i in range(len(prompts))]),
        edit_ids=np.stack([label_of([7, seed, i]) for i in range(len(prompts))]),
        replacement=replacement,
    )


def patch_of(model: EditableModel, *parts: tuple[Site, Codebook], **header: Any) -> Patch:
    # Any: fields of the header
    return Patch.from_parts(
        entries=[CodebookEntry(site=site, codebook=book) for site, book in parts],
        method=MethodRef(name="test", dist="editkit-core", version="0"),
        base=base_fingerprint(model, [site.parameter for site, _ in parts]),
        environment={},
        created="2000-01-01T00:00:00Z",
        **header,
    )


def patch_on(
    model: EditableModel,
    prompts: Sequence[str] = PROMPTS[:1],
    stack: Stack = "decoder",
    layer: int = 1,
    **more: Any,  # Any: arguments of codebook_of
) -> Patch:
    site = site_of(model, stack, layer)
    return patch_of(model, (site, codebook_of(model, prompts, site=site, **more)))


Setter = Callable[[Tensor], None]


@contextmanager
def set_by_hand(model: EditableModel, site: Site, change: Setter) -> Iterator[None]:
    """Change a copy of a module's output in place, in every pass of the block."""

    def hook(module: Any, args: Any, output: Tensor) -> Tensor:  # Any: what torch hands to hooks
        changed = output.clone()
        change(changed)
        return changed

    handle = model.module(site.module).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def outputs_of(model: EditableModel, site: Site) -> Iterator[list[Tensor]]:
    """Collect what the module gives out, behind all hooks that are there now."""
    found: list[Tensor] = []
    handle = model.module(site.module).register_forward_hook(
        lambda module, args, output: found.append(output)
    )
    try:
        yield found
    finally:
        handle.remove()


def hooks(model: EditableModel) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in model.model.modules()
    )
