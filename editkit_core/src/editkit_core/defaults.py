"""The core's own answers to the edit hooks, tried after the chosen method's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editkit_core.markers import hookimpl
from editkit_core.types import EditContext, EditRequest

if TYPE_CHECKING:
    from editkit_core.metrics.report import Report
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.apply import AppliedPatch
    from editkit_core.patch.format import Patch


@hookimpl(trylast=True)
def editkit_apply(model: EditableModel, patch: Patch, mode: str) -> AppliedPatch:
    """Apply every entry kind that the core or a plugin registered."""
    from editkit_core.patch.apply import apply_patch

    return apply_patch(model, patch, mode=mode)


@hookimpl(trylast=True)
def editkit_evaluate(
    model: EditableModel, requests: Sequence[EditRequest], patch: Patch, context: EditContext
) -> Report:
    """Measure reliability, generalization, locality and portability, before and after."""
    from editkit_core.metrics.evaluate import evaluate_patch

    return evaluate_patch(model, requests, patch, context=context)
