"""Which patches still count where newer ones replace them.

A patch may hold all of an earlier one: ``header.replaces`` names it. While both are there the
earlier one is shadowed: it is not realised, and shows again when the newer one goes. Nothing here
imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from editkit_core.patch.format import Patch


def replaced_by(ids: Iterable[str], replaces: Mapping[str, Iterable[str]]) -> set[str]:
    """Return the ids that some patches replace, also through one another.

    Args:
        ids: Ids of the patches that count.
        replaces: What each known patch replaces, by id; also of patches that do not count.
    """
    found: set[str] = set()
    waiting = [name for one in ids for name in replaces.get(one, ())]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += replaces.get(name, ())
    return found


def effective(patches: Sequence[Patch]) -> tuple[Patch, ...]:
    """Return the patches that none of the others replaces, in the order given."""
    replaces = {patch.header.id: patch.header.replaces for patch in patches}
    shadowed = replaced_by(replaces, replaces)
    return tuple(patch for patch in patches if patch.header.id not in shadowed)
