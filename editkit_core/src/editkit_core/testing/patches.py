"""Random patches that fit a model, for tests of whatever handles patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from editkit_core.models.editable import EditableModel
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import DenseEntry, Evidence, LowRankEntry, MethodRef, Patch
from editkit_core.patch.kinds import WeightEntry
from editkit_core.types import EditRequest, Site

RANDOM_EDIT = EditRequest(
    prompt="The capital of {} is", subject="Norway", target_new="Lima", target_true="Oslo"
)


def random_patch(
    model: EditableModel,
    *,
    layers: Sequence[int] = (1,),
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
        rank: Number of factors, or None for a full matrix.
        seed: Seed of the numbers.
        scale: Size of the change relative to a typical weight matrix.
        evidence: Whether to add a random edit key for each layer.
        name: The patch's name.
    """
    generator = torch.Generator().manual_seed(seed)
    sites = [model.site(layer) for layer in layers]
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
