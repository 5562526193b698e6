"""KN: find the feed-forward neurons that express a fact, and change their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editkit_core import EditContext, EditRequest, MethodInfo, Site, hookimpl

if TYPE_CHECKING:
    from editkit_core import EditableModel, Patch
    from editkit_kn.params import KnParams

__version__ = "0.1.0"

__all__ = ["__version__", "editkit_compute_delta", "editkit_locate", "editkit_method"]


@hookimpl
def editkit_method() -> MethodInfo:
    """Describe KN."""
    from editkit_kn.info import INFO

    return INFO


@hookimpl
def editkit_locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: KnParams,
    context: EditContext,
) -> Sequence[Site]:
    """Choose the weights among whose neurons the facts are sought."""
    from editkit_kn.locate import locate

    return locate(model, requests, params, context)


@hookimpl
def editkit_compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: KnParams,
    context: EditContext,
) -> Patch:
    """Find each fact's neurons and change their columns."""
    from editkit_kn.delta import compute_delta

    return compute_delta(model, requests, sites, params, context)
