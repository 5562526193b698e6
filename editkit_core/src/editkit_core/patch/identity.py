"""Digests of a model's configuration and tokenizer: informative parts of a base fingerprint."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from editkit_core.patch.digests import canonical

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_VOLATILE = frozenset(
    {"transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype", "use_cache"}
)
_TOKENIZER_STATE = ("truncation", "padding")  # set by calls, not part of what it is


def config_digest(config: PretrainedConfig) -> str:
    """Return the digest of a configuration without what changes from load to load."""
    return hashlib.sha256(canonical(_stable(config.to_dict()), "config")).hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the digest of a fast tokenizer's full definition; None for a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    definition = json.loads(backend.to_str())
    for key in _TOKENIZER_STATE:
        definition.pop(key, None)
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def public_name(name: str) -> str:
    """Return a model's name without the folders of this machine.

    >>> public_name("/home/someone/models/tiny"), public_name("org/model")
    ('tiny', 'org/model')
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    local = name[:1] in {"/", ".", "~", "\\"} or len(parts) > 2 or name[1:2] == ":"
    return parts[-1] if local and parts else name


def _stable(value: Any) -> Any:  # Any: JSON-like values of a configuration
    if isinstance(value, dict):
        return {str(k): _stable(v) for k, v in value.items() if str(k) not in _VOLATILE}
    if isinstance(value, list | tuple | set):
        items = [_stable(item) for item in value]
        return sorted(items, key=repr) if isinstance(value, set) else items
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    return str(value)
