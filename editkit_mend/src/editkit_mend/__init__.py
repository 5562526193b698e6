"""MEND: a trained editor turns the gradient of an edit into a low-rank change of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editkit_core import EditContext, EditRequest, MethodInfo, Site, hookimpl

if TYPE_CHECKING:
    from editkit_core import EditableModel, Patch
    from editkit_core.data.dataset import DataSet
    from editkit_core.patch.artifact import EditorArtifact
    from editkit_mend.params import MendParams

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "editkit_compute_delta",
    "editkit_locate",
    "editkit_method",
    "editkit_train",
]


@hookimpl
def editkit_method() -> MethodInfo:
    """Describe MEND."""
    from editkit_mend.info import INFO

    return INFO


@hookimpl
def editkit_locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: MendParams,
    context: EditContext,
) -> Sequence[Site]:
    """Name the weights the editor was trained for."""
    from editkit_mend.locate import locate

    return locate(model, requests, params, context)


@hookimpl
def editkit_compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: MendParams,
    context: EditContext,
) -> Patch:
    """Turn the requests' gradient into one low-rank change a weight."""
    from editkit_mend.delta import compute_delta

    return compute_delta(model, requests, sites, params, context)


@hookimpl
def editkit_train(
    model: EditableModel, dataset: DataSet, params: MendParams, context: EditContext
) -> EditorArtifact:
    """Train an editor for a model."""
    from editkit_mend.train import train

    return train(model, dataset, params, context)
