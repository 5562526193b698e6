"""GRACE: answer some prompts from a codebook beside one layer; no weight changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editkit_core import EditContext, EditRequest, MethodInfo, Site, hookimpl

if TYPE_CHECKING:
    from editkit_core import EditableModel, Patch
    from editkit_grace.params import GraceParams

__version__ = "0.1.0"

__all__ = ["__version__", "editkit_compute_delta", "editkit_locate", "editkit_method"]


@hookimpl
def editkit_method() -> MethodInfo:
    """Describe GRACE."""
    from editkit_grace.info import INFO

    return INFO


@hookimpl
def editkit_locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: GraceParams,
    context: EditContext,
) -> Sequence[Site]:
    """Choose the one module that gets a codebook."""
    from editkit_grace.locate import locate

    return locate(model, requests, params, context)


@hookimpl
def editkit_compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: GraceParams,
    context: EditContext,
) -> Patch:
    """Write the requests into a codebook, one after another."""
    from editkit_grace.delta import compute_delta

    return compute_delta(model, requests, sites, params, context)
