"""Where FT trains: the feed-forward down projections of a few layers."""

from __future__ import annotations

from collections.abc import Sequence

from editkit_core import EditableModel, EditContext, EditRequest, Site
from editkit_core.errors import InvalidRequestError
from editkit_core.models.pairs import pair_row
from editkit_ft.params import FtParams


def locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: FtParams,
    context: EditContext,
) -> tuple[Site, ...]:
    """Return the sites of the parameters' layers; a trace proposes one layer instead.

    Raises:
        InvalidRequestError: There is no request, or no token stands before a target.
        EmptyTargetError: A target has no token of its own.
        PromptTooLongError: Prompt and target do not fit the model's context.
        LayerOutOfRangeError: The model has no such layer.
        UnsupportedModelError: The encoder is asked for and there is none.
    """
    if not requests:
        raise InvalidRequestError("There is nothing to edit: no requests were given.")
    for request in requests:
        pair_row(model, request.text, request.target_new)
    if context.locate == "trace":
        from editkit_core.numerics.tracing import propose_layer

        layer = propose_layer(model, requests, seed=context.seed, progress=context.progress)
        return (model.site(layer, "last", stack=params.stack),)
    depth = model.count_layers(params.stack)
    return tuple(model.site(layer, "last", stack=params.stack) for layer in params.chosen(depth))
