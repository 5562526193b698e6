"""Rewrite a weights file with some tensors replaced and every other byte as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from editkit_core.patch.checkpoint import Shard

_CHUNK_BYTES = 16 * 1024 * 1024


def with_replaced(shard: Shard, tensors: Mapping[str, bytes | memoryview]) -> Iterator[bytes]:
    """Yield a weights file's bytes with the given tensors' bytes replaced.

    Header, order, offsets and padding stay; each replacement has exactly the size of what it
    replaces.

    Args:
        shard: The file to read.
        tensors: New bytes by stored name.
    """
    position = 0
    with shard.path.open("rb") as file:
        for name in sorted(tensors, key=lambda name: shard.slots[name].start):
            slot, new = shard.slots[name], tensors[name]
            if len(new) != slot.stop - slot.start:
                raise ValueError(f"{name} takes {slot.stop - slot.start} bytes, got {len(new)}")
            yield from _copy(file.read, shard.data_start + slot.start - position)
            yield bytes(new)
            position = shard.data_start + slot.stop
            file.seek(position)
        yield from _copy(file.read, shard.path.stat().st_size - position)


class Hashed:
    """Passes pieces through and knows the digest of what passed.

    Args:
        pieces: The pieces.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self._digest.update(piece)
            yield piece

    @property
    def sha256(self) -> str:
        """Digest of the pieces passed so far."""
        return self._digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _copy(read: Callable[[int], bytes], count: int) -> Iterator[bytes]:
    while count > 0:
        piece = read(min(count, _CHUNK_BYTES))
        if not piece:
            raise OSError("the weights file became shorter while it was read")
        count -= len(piece)
        yield piece
