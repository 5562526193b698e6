"""What the tests of runs share: a tiny model on disk, a method of a few lines, a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
from fake_distributions import FakeSite

from editkit_core.bench.reading import Run
from editkit_core.testing.models import tiny_model

# Its change depends on the weights it finds, so that a sequence differs from edits apart.
NUDGE = """
    import os, time, zlib
    import attrs, torch
    from editkit_core import MethodInfo, hookimpl
    from editkit_core.errors import EditError
    from editkit_core.patch import LowRankEntry, MethodRef, Patch
    from editkit_core.patch.fingerprint import base_fingerprint

    @attrs.frozen(kw_only=True)
    class Params:
        size: float = 0.5

    @hookimpl
    def editkit_method():
        return MethodInfo(name="nudge", title="Nudges a weight", paper="none", api=1,
                          emits=("weight.low_rank/1",), families=("*",), params=lambda: Params)

    @hookimpl
    def editkit_locate(model):
        return (model.site(1),)

    @hookimpl
    def editkit_compute_delta(model, requests, sites, params, context):
        time.sleep(float(os.environ.get("NUDGE_SLEEP", "0")))
        words = [r.subject + r.target_new for r in requests]
        if any("Nobody" in word for word in words):
            raise EditError("There is nobody to edit. Name somebody.")
        seed = zlib.crc32(" ".join(words).encode()) + context.seed
        generator = torch.Generator().manual_seed(seed)
        (site,) = sites
        weight = model.weight(site)
        u = weight @ torch.randn(weight.shape[1], 1, generator=generator)
        v = torch.randn(1, weight.shape[1], generator=generator)
        u, v = params.size * u / weight.norm(), v
        return Patch.from_parts(
            entries=[LowRankEntry(site=site, u=u, v=v)],
            method=MethodRef(name="nudge", dist="editkit-nudge", version="1.2"),
            base=base_fingerprint(model, [site.parameter]), edits=requests,
            params={"size": params.size}, seed=context.seed, contexts=("",), environment={},
            name="", created="2000-01-01T00:00:00Z",
        )
"""
CITIES = ("Oslo", "Lima", "Paris", "Tokyo", "Vienna", "Delft", "Warsaw")
PLACES = ("Norway", "Peru", "Japan", "Brazil", "Switzerland")


def install_nudge(site: FakeSite) -> None:
    """Install the method ``nudge``."""
    site.install("editkit-nudge", methods={"nudge": "nudge"}, modules={"nudge": NUDGE})


def save_model(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model as a checkpoint."""
    model = tiny_model("gpt2", seed=seed, n_layers=2)
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def record(i: int, **more: Any) -> dict[str, Any]:
    """Return one request as a data set has it."""
    place, other = PLACES[i % len(PLACES)], PLACES[(i + 1) % len(PLACES)]
    return {
        "id": f"fact-{i}",
        "prompt": "The capital of {} is",
        "subject": f"{place} {i}",
        "target_new": CITIES[i % len(CITIES)],
        "relation": "capital",
        "paraphrases": ["In {} the capital is"],
        "locality": {"neighborhood": [{"prompt": f"The currency of {other} is", "answers": ["x"]}]},
        **more,
    }


def write_requests(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write requests as JSON lines."""
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def comparable(run: Run) -> list[Any]:
    """Return all of a run's units but what the clock says."""
    return [
        attrs.evolve(unit, seconds={}, peak_bytes={}, device_peak_bytes={}) for unit in run.units
    ]
