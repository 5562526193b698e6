"""The digests of patches: canonical JSON, tensors, metadata, and stacks of patches.

All are SHA-256 in hexadecimal. ``content_digest`` covers the tensors' digests and all metadata but
``id``, ``content_digest``, ``checksum`` and ``created``, so the same edit made on another day has
the same id. ``checksum`` covers everything but itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import rfc8785

from editkit_core.errors import PatchFormatError

if TYPE_CHECKING:
    import numpy as np

    from editkit_core.patch.format import Patch

_NOT_CONTENT = frozenset({"id", "content_digest", "checksum", "created"})
_MAX_WHOLE = 2**53 - 1
_MAX_DEPTH = 64


def canonical(value: Any, where: str) -> bytes:  # Any: JSON values
    """Return RFC 8785 canonical JSON.

    Raises:
        PatchFormatError: The value has something that RFC 8785 cannot express; the message says
            where.
    """
    _check(value, where, _MAX_DEPTH)
    return rfc8785.dumps(value)


def content_digest(metadata: Mapping[str, Any]) -> str:  # Any: JSON values
    """Return the digest of what a patch is; its metadata holds the tensors' digests."""
    content = {key: value for key, value in metadata.items() if key not in _NOT_CONTENT}
    return hashlib.sha256(canonical(content, "metadata")).hexdigest()


def checksum(metadata: Mapping[str, Any]) -> str:  # Any: JSON values
    """Return the digest of all metadata but the checksum itself."""
    rest = {key: value for key, value in metadata.items() if key != "checksum"}
    return hashlib.sha256(canonical(rest, "metadata")).hexdigest()


def patch_id(digest: str) -> str:
    """Return the short name of a content digest."""
    return f"ek-{digest[:16]}"


def tensor_digest(name: str, array: np.ndarray[Any, Any]) -> str:  # Any: element type and shape
    """Return the digest of a tensor's name, dtype, shape and bytes."""
    head = f"{name}\n{array.dtype.str}\n{'x'.join(map(str, array.shape))}\n"
    digest = hashlib.sha256(head.encode())
    digest.update(array.data)
    return digest.hexdigest()


def stack_digest(patches: Iterable[Patch | tuple[Patch, float]]) -> str | None:
    """Return what an edit was computed on top of: None for the bare base.

    The order does not count, because the patches' sum does not depend on it.

    Args:
        patches: The applied patches; with its scale where that is not 1.
    """
    scaled = (item if isinstance(item, tuple) else (item, 1.0) for item in patches)
    return digest_of((patch.header.content_digest, scale) for patch, scale in scaled)


def digest_of(contents: Iterable[tuple[str, float]]) -> str | None:
    """Return :func:`stack_digest` from the patches' content digests and scales alone."""
    lines = sorted(
        content if scale == 1 else f"{content} {float(scale)!r}" for content, scale in contents
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


def _check(value: Any, where: str, depth: int) -> None:  # Any: JSON values
    if depth < 0:
        raise PatchFormatError(f"{where} is nested more than {_MAX_DEPTH} deep.", where=where)
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if abs(value) > _MAX_WHOLE:
            raise _inexpressible(where, value, "store whole numbers beyond 2**53 as text")
    elif isinstance(value, float):
        if value - value != 0:
            raise _inexpressible(where, value, "leave the value out or store it as text")
    elif isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise _inexpressible(where, ascii(value), "repair the text") from None
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check(item, f"{where}[{i}]", depth - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise _inexpressible(where, key, "use text as keys")
            _check(key, f"a key of {where}", depth)
            _check(item, f"{where}.{key}", depth - 1)
    else:
        raise _inexpressible(where, type(value).__name__, "store plain JSON values")


def _inexpressible(where: str, value: object, remedy: str) -> PatchFormatError:
    return PatchFormatError(
        f"{where} holds {value!r}, which canonical JSON (RFC 8785) cannot express; {remedy}.",
        where=where,
    )
