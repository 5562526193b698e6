"""AlphaEdit: change facts batch after batch, where other text hardly looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editkit_core import EditContext, EditRequest, MethodInfo, Site, hookimpl

if TYPE_CHECKING:
    from editkit_alphaedit.params import AlphaEditParams
    from editkit_core import EditableModel, Patch

__version__ = "0.1.0"

__all__ = ["__version__", "editkit_compute_delta", "editkit_locate", "editkit_method"]


@hookimpl
def editkit_method() -> MethodInfo:
    """Describe AlphaEdit."""
    from editkit_alphaedit.info import INFO

    return INFO


@hookimpl
def editkit_locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: AlphaEditParams,
    context: EditContext,
) -> Sequence[Site]:
    """Choose the window of weights to edit."""
    from editkit_alphaedit.locate import locate

    return locate(model, requests, params, context)


@hookimpl
def editkit_compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: AlphaEditParams,
    context: EditContext,
) -> Patch:
    """Compute one change a layer for the whole batch."""
    from editkit_alphaedit.delta import compute_delta

    return compute_delta(model, requests, sites, params, context)
