"""What is true of every row of a measurement, read off model, patch and installation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from editkit_core import __version__
from editkit_core.metrics.report import Facts

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch

_DISTRIBUTIONS = ("numpy", "safetensors", "tokenizers", "torch", "transformers")


def facts_of(
    model: EditableModel,
    patches: Sequence[Patch] = (),
    *,
    target_policy: str = "",
    seed: int = 0,
    fingerprint: str | None = None,
) -> Facts:
    """Return the facts of a measurement.

    Args:
        model: The unedited model.
        patches: What the second score is measured with.
        target_policy: Which of the data set's answers the target is.
        seed: Seed of the edit and of sampling.
        fingerprint: The model's, when it is known; reading it takes about as long as reading all
            weights.
    """
    from editkit_core.metrics.cache import model_fingerprint

    methods: dict[str, str] = {
        patch.header.method.dist: patch.header.method.version for patch in patches
    }
    return Facts(
        target_policy=target_policy,
        seed=seed,
        model=fingerprint or model_fingerprint(model),
        patches=tuple(patch.header.id for patch in patches),
        versions={**methods, **software()},
    )


def software() -> dict[str, str]:
    """Return the versions of the software that scores depend on, by distribution."""
    found = {"editkit-core": __version__, "python": sys.version.split()[0]}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
