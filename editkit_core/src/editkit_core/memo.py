"""Results that are costly to compute again, kept by what they were computed from.

One memo belongs to one :class:`~editkit_core.api.Editor` and comes with the context of its edits;
there is no global one. Keys are digests of content, so nothing in it can become stale.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")

__all__ = ["Memo"]


class Memo:
    """Keeps results up to a number of bytes; those used least recently go first.

    Args:
        limit_bytes: Most bytes to keep. A larger single result is returned but not kept.
    """

    def __init__(self, limit_bytes: int = 2 << 30) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[tuple[str, ...], tuple[Any, int]] = OrderedDict()  # Any: results

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """Bytes kept."""
        return sum(size for _, size in self._kept.values())

    def get(self, key: tuple[str, ...], make: Callable[[], T], size: Callable[[T], int]) -> T:
        """Return the result with this key, made now if it is not kept.

        Args:
            key: What it is computed from, as digests and names of settings.
            make: Computes it.
            size: Says how many bytes it takes.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return cast(T, self._kept[key][0])
        made = make()
        taken = size(made)
        if taken <= self.limit_bytes:
            self._kept[key] = (made, taken)
            while self.size_bytes > self.limit_bytes:
                self._kept.popitem(last=False)
        return made
