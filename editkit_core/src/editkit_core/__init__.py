"""The core of editkit: change what a language model believes, and ship the change as a patch.

Importing this package imports neither torch nor transformers; what needs them is loaded when it is
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from editkit_core.errors import EditkitError
from editkit_core.markers import hookimpl
from editkit_core.types import EditContext, EditRequest, MethodInfo, Probe, Site

if TYPE_CHECKING:
    from editkit_core.api import Editor
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch

_LAZY = {
    "EditableModel": "editkit_core.models.editable",
    "Editor": "editkit_core.api",
    "Patch": "editkit_core.patch.format",
}

__all__ = [
    "EditContext",
    "EditRequest",
    "EditableModel",
    "EditkitError",
    "Editor",
    "MethodInfo",
    "Patch",
    "Probe",
    "Site",
    "hookimpl",
]


def __getattr__(name: str) -> Any:  # Any: whatever the lazy name stands for
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
