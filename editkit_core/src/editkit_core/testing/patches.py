"""Random patches that fit a model, for tests of whatever handles patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from editkit_core.models.editable import EditableModel
from editkit_core.models.families import Stack
from editkit_core.models.pairs import pair_batch, pair_logits
from editkit_core.models.trace import record
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import (
    Codebook,
    CodebookEntry,
    DenseEntry,
    Evidence,
    LowRankEntry,
    MethodRef,
    Patch,
)
from editkit_core.patch.kinds import WeightEntry
from editkit_core.patch.kinds.arrays import Float32Array
from editkit_core.patch.kinds.codebook import Replacement, edit_id_of, label_of
from editkit_core.patch.kinds.codebook_rules import insert
from editkit_core.types import EditRequest, Site

RANDOM_EDIT = EditRequest(
    prompt="The capital of {} is", subject="Norway", target_new="Lima", target_true="Oslo"
)


def random_patch(
    model: EditableModel,
    *,
    layers: Sequence[int] = (1,),
    stack: Stack = "decoder",
    rank: int | None = 1,
    seed: int = 0,
    scale: float = 0.3,
    evidence: bool = True,
    name: str = "",
) -> Patch:
    """Make a patch of random numbers that fits a model; equal arguments give equal patches.

    Args:
        model: The model it fits; it is left as it is.
        layers: Layers to change; one that is named twice is changed twice.
        stack: Of an encoder-decoder, the stack that they are counted in.
        rank: Number of factors, or None for a full matrix.
        seed: Seed of the numbers.
        scale: Size of the change relative to a typical weight matrix.
        evidence: Whether to add a random edit key for each layer.
        name: The patch's name.
    """
    generator = torch.Generator().manual_seed(seed)
    sites = [model.site(layer, stack=stack) for layer in layers]
    shapes = [(model.weight(site).shape[0], model.weight(site).shape[1]) for site in sites]
    keys = [
        Evidence(module=site.module, keys=torch.randn(1, d_in, generator=generator))
        for site, (_, d_in) in zip(sites, shapes, strict=True)
    ]
    return Patch.from_parts(
        entries=[
            _entry(site, shape, rank, scale, generator)
            for site, shape in zip(sites, shapes, strict=True)
        ],
        method=MethodRef(name="random", dist="editkit-core", version="0"),
        base=base_fingerprint(model, [site.parameter for site in sites]),
        edits=[RANDOM_EDIT],
        params={"rank": rank, "scale": scale},
        seed=seed,
        contexts=("",),
        evidence=keys if evidence else None,
        environment={},
        name=name,
        created="2000-01-01T00:00:00Z",
    )


def random_codebook(
    model: EditableModel,
    edits: Sequence[EditRequest] = (RANDOM_EDIT,),
    *,
    layer: int = 1,
    stack: Stack = "decoder",
    eps: float = 0.5,
    seed: int = 0,
    replacement: Replacement = "replace_last",
    former: Patch | None = None,
    computed_on: str | None = None,
    name: str = "",
) -> Patch:
    """Make a codebook patch with the true keys of its edits and random values.

    Args:
        model: The model it fits; it is left as it is.
        edits: What it edits, in order.
        layer: The layer whose down projection it gates.
        stack: Of an encoder-decoder, the stack that the layer is counted in.
        eps: Radius of a new row.
        seed: Seed of the values.
        replacement: Where the values are put.
        former: A codebook of the same module that it holds and replaces.
        computed_on: See :class:`Patch`.
        name: The patch's name.
    """
    site = model.site(layer, stack=stack)
    d_out, d_in = (int(side) for side in model.weight(site).shape)
    generator = torch.Generator().manual_seed(seed)
    book = Codebook.empty(d_in, d_out, replacement)
    if former is not None:
        (held,) = former.module_entries
        assert isinstance(held, CodebookEntry)
        book = held.codebook
    for edit in edits:
        value = torch.randn(d_out, generator=generator).numpy()
        label = label_of(list(edit.target_new.encode()))
        key = _key(model, site, edit)
        book, _, _ = insert(book, key, value, label, eps, edit_id=edit_id_of(edit))
    before = () if former is None else former.header.edits
    return Patch.from_parts(
        entries=[CodebookEntry(site=site, codebook=book)],
        method=MethodRef(name="random", dist="editkit-core", version="0"),
        base=base_fingerprint(model, [site.parameter]),
        edits=[*before, *edits],
        seed=seed,
        environment={},
        computed_on=computed_on,
        replaces=() if former is None else (former.id, *former.header.replaces),
        name=name,
        created="2000-01-01T00:00:00Z",
    )


def _key(model: EditableModel, site: Site, edit: EditRequest) -> Float32Array:
    """Return the module's input (d_in,) at the prompt's last token, float32."""
    batch = pair_batch(model, [(edit.text, edit.target_new)])
    with torch.no_grad(), record(model.model, [site.module], inputs=True) as states:
        pair_logits(model, batch)
    column = 0 if site.module.startswith("decoder.") else int(batch.queries[0])
    return np.asarray(states[site.module][0, column].float().cpu().numpy(), dtype=np.float32)


def _entry(
    site: Site,
    shape: tuple[int, int],
    rank: int | None,
    scale: float,
    generator: torch.Generator,
) -> WeightEntry:
    d_out, d_in = shape
    if rank is None:
        return DenseEntry(site=site, delta=scale * torch.randn(d_out, d_in, generator=generator))
    return LowRankEntry(
        site=site,
        u=scale * torch.randn(d_out, rank, generator=generator),
        v=torch.randn(rank, d_in, generator=generator) / d_in**0.5,
    )
