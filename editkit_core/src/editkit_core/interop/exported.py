"""What every export of factors reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from editkit_core.interop.factors import ModuleFactors
from editkit_core.interop.lossy import Loss


@attrs.frozen(kw_only=True, eq=False)
class Exported:
    """A file or folder that was written, or would be.

    Attributes:
        path: The file or folder.
        patches: Ids of the patches in it, in canonical order.
        factors: What it holds, before padding.
        nbytes: Its size.
        dry_run: Whether nothing was written.
    """

    path: Path
    patches: tuple[str, ...]
    factors: tuple[ModuleFactors, ...] = attrs.field(repr=False)
    nbytes: int
    dry_run: bool

    @property
    def modules(self) -> tuple[str, ...]:
        """The changed modules."""
        return tuple(made.site.module for made in self.factors)

    @property
    def rank(self) -> int:
        """The rank that all modules have in it."""
        return uniform_rank(self.factors)

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What truncations cost; empty for an exact export."""
        return tuple(made.loss for made in self.factors if made.loss is not None)


def uniform_rank(factors: Sequence[ModuleFactors]) -> int:
    """Return the largest rank; formats with one alpha for all modules need one rank for all."""
    return max(made.rank for made in factors)
