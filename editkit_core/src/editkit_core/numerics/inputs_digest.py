"""The digest of everything in a model that the keys at a site depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from editkit_core.errors import UnsupportedModelError
from editkit_core.patch.bits import CONTAINER_DTYPES, TORCH_DTYPES, is_plain, same_bits, sha256
from editkit_core.patch.digests import canonical
from editkit_core.patch.identity import config_digest, tokenizer_digest
from editkit_core.types import Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["inputs_digest", "inputs_digests"]


def inputs_digest(model: EditableModel, site: Site) -> str:
    """Return the SHA-256 of canonical JSON with three parts.

    * the configuration's digest,
    * the tokenizer's digest,
    * the digest of every parameter, except those of the blocks above the site's layer, the final
      norm, the output head and the edited module itself: no key depends on these, so statistics
      made before an edit of that module still fit after it. At an attention's output projection
      the layer's feed-forward, with a norm of its own, does not count either.

    Tensors are hashed in the type that the checkpoint stores, so the digest does not depend on the
    type the model was loaded in. Patches applied by the ledger do not count.

    Raises:
        UnsupportedModelError: A parameter is offloaded or quantised and there are no files to read.
    """
    return inputs_digests(model, [site])[0]


def inputs_digests(model: EditableModel, sites: Sequence[Site]) -> tuple[str, ...]:
    """Return :func:`inputs_digest` of each site; a tensor below several is hashed once.

    Raises:
        UnsupportedModelError: As there.
    """
    shared = {
        "config": config_digest(model.model.config),
        "tokenizer": tokenizer_digest(model.tokenizer),
    }
    below = [_parameters_below(model, site) for site in sites]
    tensors = {name: _tensor_digest(model, name) for name in sorted({n for b in below for n in b})}
    parts = [{**shared, "tensors": {name: tensors[name] for name in names}} for names in below]
    return tuple(hashlib.sha256(canonical(part, "statistics inputs")).hexdigest() for part in parts)


def _parameters_below(model: EditableModel, site: Site) -> list[str]:
    family = model.family
    above = [family.block(layer) for layer in range(site.layer + 1, model.n_layers)]
    beside = family.mlp_parts(site.layer) if site.role == "attn_out" else ()
    without = (*above, *beside, site.module, family.final_norm, family.head)
    return sorted(
        name
        for name, _ in model.model.named_parameters()
        if not any(name.startswith(f"{module}.") for module in without)
    )


def _tensor_digest(model: EditableModel, name: str) -> str:
    snapshot = model.ledger.pristine(name)
    live = model.parameter(name).detach() if snapshot is None else snapshot
    stored = model.source.dtype(name) if model.source else None
    if stored is not None and stored in TORCH_DTYPES:
        exact = _in_stored_type(model, name, live, TORCH_DTYPES[stored])
        if exact is not None:
            return f"{stored} {sha256(exact)}"
    if not is_plain(live):
        raise UnsupportedModelError(
            f"{name} is offloaded or quantised ({live.dtype}), so what keys depend on cannot be "
            "checked. Make the statistics with the model loaded plainly.",
            parameter=name,
        )
    return f"{CONTAINER_DTYPES[live.dtype]} {sha256(live)}"


def _in_stored_type(
    model: EditableModel, name: str, live: torch.Tensor, wanted: torch.dtype
) -> torch.Tensor | None:
    """Return the tensor as the checkpoint has it, or None when memory holds something else."""
    if is_plain(live) and torch.promote_types(live.dtype, wanted) == live.dtype:
        back = live.to(wanted)
        return back if same_bits(back.to(live.dtype), live) else None
    assert model.source is not None  # it told the stored type
    stored = model.source.tensor(name)
    unchanged = not is_plain(live) or same_bits(stored.to(live.dtype), live.cpu())
    return stored if unchanged else None
