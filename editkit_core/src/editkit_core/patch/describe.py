"""What there is to say about a patch, as JSON values; ``editkit patch show`` prints it."""

from __future__ import annotations

from typing import Any

from editkit_core.patch.format import Patch
from editkit_core.patch.header import BaseFingerprint, PatchHeader
from editkit_core.patch.header_codec import to_json
from editkit_core.patch.kinds import Entry
from editkit_core.types import Site

Description = dict[str, Any]  # Any: JSON values


def describe(patch: Patch) -> Description:
    """Describe a whole patch: the header, and size and rank of every change."""
    described = describe_header(patch.header)
    for row, entry in zip(described["entries"], patch.entries, strict=True):
        row |= {"level": entry.level, "shape": list(entry.shape), "norm": entry.norm()}
        row |= _size(entry, patch.header.base)
        row["bytes"] = sum(array.nbytes for array in entry.tensors().values())
    return described | {
        "nbytes": patch.nbytes,
        "evidence": [
            {
                "module": block.module,
                "keys": list(block.keys.shape),
                "values": None if block.values is None else list(block.values.shape),
            }
            for block in patch.evidence
        ],
        "canary": None if patch.canary is None else {"probes": len(patch.canary.tokens)},
    }


def describe_header(header: PatchHeader) -> Description:
    """Describe a patch from its header alone."""
    return {
        "id": header.id,
        "name": header.name,
        "created": header.created,
        "spec_version": header.spec_version,
        "content_digest": header.content_digest,
        "kinds": sorted({entry.kind for entry in header.entries}),
        "method": to_json(header.method),
        "base": _base(header.base),
        "entries": [{"kind": e.kind, **_site(e.site)} for e in header.entries],
        "edits": [to_json(edit) for edit in header.edits],
        "params": to_json(header.params),
        "seed": header.seed,
        "contexts": len(header.contexts),
        "environment": to_json(header.environment),
        "metrics": to_json(header.metrics),
        "computed_on": header.computed_on,
        "requires": list(header.requires),
        "replaces": list(header.replaces),
        "conflicts": list(header.conflicts),
        "licence": header.licence,
    }


def _size(entry: Entry, base: BaseFingerprint) -> Description:
    if entry.level == "module":
        return entry.facts()
    norm = base.tensors[entry.site.parameter].norm
    return {"rank": entry.rank, "relative_norm": entry.norm() / norm if norm else None}


def _site(site: Site) -> Description:
    return {name: getattr(site, name) for name in ("module", "parameter", "role", "layer", "token")}


def _base(base: BaseFingerprint) -> Description:
    return {
        "model": base.model,
        "revision": base.revision,
        "config_digest": base.config_digest,
        "tokenizer_digest": base.tokenizer_digest,
        "tied": [list(group) for group in base.tied],
        "tensors": {
            name: {
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
                "layout": tensor.layout,
                "sha256": tensor.sha256,
                "norm": tensor.norm,
            }
            for name, tensor in base.tensors.items()
        },
    }
