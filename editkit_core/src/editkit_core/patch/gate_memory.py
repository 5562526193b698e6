"""What a gate decided for the rows of a cache, kept on the cache itself.

A text goes on under its cache, which may be copied, and whose rows may be chosen or put in another
order: the decisions go with them. A cache that remembers is of a class derived from its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import Cache

_FIELD = "_editkit_routes"


def remember(cache: object, gate: str, routes: Tensor | None) -> None:
    """Keep what a gate decided for each row; None forgets it.

    Args:
        cache: The cache; what is no cache of transformers cannot be gone on under.
        gate: Name of the gate.
        routes: The codebook row of each text (rows,), int64, -1 for none.
    """
    if not isinstance(cache, Cache):
        return
    kept = vars(cache).get(_FIELD)
    if kept is None and routes is None:
        return
    if kept is None:
        cache.__class__ = _remembering(type(cache))  # type: ignore[arg-type]  # a class is hashable
    # A new mapping each time: a copy of the cache shares the old one.
    rest = {name: known for name, known in (kept or {}).items() if name != gate}
    setattr(cache, _FIELD, rest if routes is None else rest | {gate: routes})


def recall(cache: object, gate: str) -> Tensor | None:
    """Return what a gate decided for the rows of a cache, or None."""
    kept: dict[str, Tensor] = getattr(cache, _FIELD, {})
    return kept.get(gate)


@functools.cache
def _remembering(kind: type[Cache]) -> type[Cache]:
    """Return a class of caches like ``kind`` whose decisions follow the rows."""

    def follow(cache: Any, how: Callable[[Tensor], Tensor]) -> None:  # Any: an instance of kind
        setattr(cache, _FIELD, {gate: how(routes) for gate, routes in vars(cache)[_FIELD].items()})

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        kind.batch_select_indices(self, indices)
        follow(self, lambda routes: routes[indices.to(routes.device)])

    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        kind.reorder_cache(self, beam_idx)
        follow(self, lambda routes: routes[beam_idx.to(routes.device)])

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        kind.batch_repeat_interleave(self, repeats)
        follow(self, lambda routes: routes.repeat_interleave(repeats))

    methods = (batch_select_indices, reorder_cache, batch_repeat_interleave)
    return type(kind.__name__, (kind,), {method.__name__: method for method in methods})
