"""FT: fine-tune a few feed-forward weights on the facts, with a bound on their change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editkit_core import EditContext, EditRequest, MethodInfo, Site, hookimpl

if TYPE_CHECKING:
    from editkit_core import EditableModel, Patch
    from editkit_ft.params import FtParams

__version__ = "0.1.0"

__all__ = ["__version__", "editkit_compute_delta", "editkit_locate", "editkit_method"]


@hookimpl
def editkit_method() -> MethodInfo:
    """Describe FT."""
    from editkit_ft.info import INFO

    return INFO


@hookimpl
def editkit_locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: FtParams,
    context: EditContext,
) -> Sequence[Site]:
    """Choose the weights to train."""
    from editkit_ft.locate import locate

    return locate(model, requests, params, context)


@hookimpl
def editkit_compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: FtParams,
    context: EditContext,
) -> Patch:
    """Train the weights on the requests."""
    from editkit_ft.delta import compute_delta

    return compute_delta(model, requests, sites, params, context)
