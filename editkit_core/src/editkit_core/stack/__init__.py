"""Stacks of patches: order, enable, scale, take out of the middle; in memory and on disk.

Importing this package is cheap; names that need torch are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editkit_core.stack.conflicts import Conflict, find_conflicts
    from editkit_core.stack.patch_stack import PatchStack, StackEntry
    from editkit_core.stack.rebase import Rebased
    from editkit_core.stack.state import EntryState, StackState
    from editkit_core.stack.store import StackStore

_HOMES = {
    "Conflict": "conflicts",
    "EntryState": "state",
    "PatchStack": "patch_stack",
    "Rebased": "rebase",
    "StackEntry": "patch_stack",
    "StackState": "state",
    "StackStore": "store",
    "find_conflicts": "conflicts",
}
__all__ = [
    "Conflict",
    "EntryState",
    "PatchStack",
    "Rebased",
    "StackEntry",
    "StackState",
    "StackStore",
    "find_conflicts",
]


def __getattr__(name: str) -> Any:  # Any: the public names have many types
    """Import a public name from its home module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
