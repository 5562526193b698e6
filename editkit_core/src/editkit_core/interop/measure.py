"""Measure again what a lossy export still does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from editkit_core import __version__
from editkit_core.interop.factors import ModuleFactors, Scaled
from editkit_core.metrics.report import Score
from editkit_core.patch.fold import fold
from editkit_core.patch.folded_base import common_base
from editkit_core.patch.format import MethodRef, Patch
from editkit_core.patch.kinds.low_rank import LowRankEntry

if TYPE_CHECKING:
    from editkit_core.api import Editor


@attrs.frozen(kw_only=True)
class Remeasured:
    """Scores on the patches' own edits; ``before`` is the base's in both.

    Attributes:
        exact: With the patches as they are.
        exported: With what was exported.
    """

    exact: tuple[Score, ...]
    exported: tuple[Score, ...]


def remeasure(
    editor: Editor, patches: Sequence[Scaled], factors: Sequence[ModuleFactors]
) -> Remeasured | None:
    """Evaluate patches and what was exported of them on their own edits.

    Args:
        editor: The base; it is left as it was.
        patches: The patches.
        factors: What was exported.

    Returns:
        The scores, or None when the patches say nothing of what they edit.

    Raises:
        BaseMismatchError: The patches are for another base.
    """
    edits = [edit for patch, _ in patches for edit in patch.header.edits]
    if not edits:
        return None
    alone = len(patches) == 1 and patches[0][1] == 1
    exact = patches[0][0] if alone else fold(patches)
    return Remeasured(
        exact=editor.evaluate(edits, exact).scores(),
        exported=editor.evaluate(edits, as_patch(patches, factors)).scores(),
    )


def as_patch(patches: Sequence[Scaled], factors: Sequence[ModuleFactors]) -> Patch:
    """Return what was exported as a patch of its own."""
    return Patch.from_parts(
        entries=[LowRankEntry(site=made.site, u=made.u, v=made.v) for made in factors],
        method=MethodRef(name="export", dist="editkit-core", version=__version__),
        base=common_base([patch for patch, _ in patches]),
        edits=[edit for patch, _ in patches for edit in patch.header.edits],
    )
