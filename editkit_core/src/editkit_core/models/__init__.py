"""Models: families, the one model wrapper, text to tokens, reading and replacing activations.

Importing this package imports neither torch nor transformers; names are loaded when used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from editkit_core.models.families import BUILTIN_FAMILIES, Family, find_family

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.models.text import (
        Batch,
        Encoded,
        EncodedPair,
        TokenSpan,
        encode,
        encode_pair,
        join,
        pad_batch,
        position,
        require_offsets,
        token_span,
    )
    from editkit_core.models.trace import record, replace_output

__all__ = [
    "BUILTIN_FAMILIES",
    "Batch",
    "EditableModel",
    "Encoded",
    "EncodedPair",
    "Family",
    "TokenSpan",
    "encode",
    "encode_pair",
    "find_family",
    "join",
    "pad_batch",
    "position",
    "record",
    "replace_output",
    "require_offsets",
    "token_span",
]

_HOMES = {"EditableModel": "editable", "record": "trace", "replace_output": "trace"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES.get(name, 'text')}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return __all__
