"""ROME: change one fact by a rank-one change of one feed-forward weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editkit_core import EditContext, EditRequest, MethodInfo, Site, hookimpl

if TYPE_CHECKING:
    from editkit_core import EditableModel, Patch
    from editkit_rome.params import RomeParams

__version__ = "0.1.0"

__all__ = ["__version__", "editkit_compute_delta", "editkit_locate", "editkit_method"]


@hookimpl
def editkit_method() -> MethodInfo:
    """Describe ROME."""
    from editkit_rome.info import INFO

    return INFO


@hookimpl
def editkit_locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: RomeParams,
    context: EditContext,
) -> Sequence[Site]:
    """Choose the one weight to edit."""
    from editkit_rome.locate import locate

    return locate(model, requests, params, context)


@hookimpl
def editkit_compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: RomeParams,
    context: EditContext,
) -> Patch:
    """Compute one rank-one change a request."""
    from editkit_rome.delta import compute_delta

    return compute_delta(model, requests, sites, params, context)
