"""EMMET: change a batch of facts at one layer, with their values met exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editkit_core import EditContext, EditRequest, MethodInfo, Site, hookimpl

if TYPE_CHECKING:
    from editkit_core import EditableModel, Patch
    from editkit_emmet.params import EmmetParams

__version__ = "0.1.0"

__all__ = ["__version__", "editkit_compute_delta", "editkit_locate", "editkit_method"]


@hookimpl
def editkit_method() -> MethodInfo:
    """Describe EMMET."""
    from editkit_emmet.info import INFO

    return INFO


@hookimpl
def editkit_locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: EmmetParams,
    context: EditContext,
) -> Sequence[Site]:
    """Choose the weight to edit."""
    from editkit_emmet.locate import locate

    return locate(model, requests, params, context)


@hookimpl
def editkit_compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: EmmetParams,
    context: EditContext,
) -> Patch:
    """Compute one change for the whole batch."""
    from editkit_emmet.delta import compute_delta

    return compute_delta(model, requests, sites, params, context)
