"""What tests of methods and plugins need, without downloads: tiny models and tokenizers.

Importing this package imports neither torch nor transformers; names are loaded when used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from editkit_core.testing.models import (
        TINY_ENCODER_DECODERS,
        TINY_FAMILIES,
        tiny_model,
        tiny_tokenizer,
    )

__all__ = ["TINY_ENCODER_DECODERS", "TINY_FAMILIES", "tiny_model", "tiny_tokenizer"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.models"), name)


def __dir__() -> list[str]:
    return __all__
