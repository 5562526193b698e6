"""Patches: typed changes of a model that can be saved, checked, applied and taken off again.

Importing this package is cheap; names that need torch are imported when first used. ``describe``
and ``verify`` live in the modules of these names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editkit_core.patch.apply import AppliedPatch, apply_patch
    from editkit_core.patch.checkpoint import CheckpointSource
    from editkit_core.patch.checkpoint_edit import revert_folder, write_patched
    from editkit_core.patch.digests import stack_digest
    from editkit_core.patch.fingerprint import base_fingerprint, check_base
    from editkit_core.patch.format import (
        BaseFingerprint,
        Canary,
        Codebook,
        CodebookEntry,
        ColumnsEntry,
        DenseEntry,
        DenseInt8Entry,
        Evidence,
        LowRankEntry,
        MethodRef,
        Patch,
        PatchHeader,
        TensorFingerprint,
    )
    from editkit_core.patch.io import read_header
    from editkit_core.patch.ledger import WeightLedger

_HOMES = {
    "AppliedPatch": "apply",
    "BaseFingerprint": "format",
    "Canary": "format",
    "CheckpointSource": "checkpoint",
    "Codebook": "format",
    "CodebookEntry": "format",
    "ColumnsEntry": "format",
    "DenseEntry": "format",
    "DenseInt8Entry": "format",
    "Evidence": "format",
    "LowRankEntry": "format",
    "MethodRef": "format",
    "Patch": "format",
    "PatchHeader": "format",
    "TensorFingerprint": "format",
    "WeightLedger": "ledger",
    "apply_patch": "apply",
    "base_fingerprint": "fingerprint",
    "check_base": "fingerprint",
    "read_header": "io",
    "revert_folder": "checkpoint_edit",
    "stack_digest": "digests",
    "write_patched": "checkpoint_edit",
}
__all__ = [
    "AppliedPatch",
    "BaseFingerprint",
    "Canary",
    "CheckpointSource",
    "Codebook",
    "CodebookEntry",
    "ColumnsEntry",
    "DenseEntry",
    "DenseInt8Entry",
    "Evidence",
    "LowRankEntry",
    "MethodRef",
    "Patch",
    "PatchHeader",
    "TensorFingerprint",
    "WeightLedger",
    "apply_patch",
    "base_fingerprint",
    "check_base",
    "read_header",
    "revert_folder",
    "stack_digest",
    "write_patched",
]


def __getattr__(name: str) -> Any:  # Any: the public names have many types
    """Import a public name from its home module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
