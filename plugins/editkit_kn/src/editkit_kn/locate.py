"""Where KN looks: the neurons of the feed-forward layers, all of them unless some are named."""

from __future__ import annotations

from collections.abc import Sequence

from editkit_core import EditableModel, EditContext, EditRequest, Site
from editkit_core.errors import InvalidParameterError, InvalidRequestError
from editkit_kn.answers import answers_of
from editkit_kn.params import KnParams


def locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: KnParams,
    context: EditContext,
) -> tuple[Site, ...]:
    """Return the down projections whose neurons are searched; the fact's own come with the change.

    Raises:
        InvalidRequestError: There is no request, one has no ``target_true``, or both its answers
            are the same.
        InvalidParameterError: A trace is asked for.
        PromptTooLongError: A prompt with an answer does not fit the model's context.
        LayerOutOfRangeError: The model has no such layer.
    """
    if not requests:
        raise InvalidRequestError("There is nothing to edit: no requests were given.")
    if context.locate == "trace":
        raise InvalidParameterError(
            "KN finds its neurons by itself, in all layers. Leave --locate trace out."
        )
    for request in requests:
        answers_of(model, request, params.answer_tokens)
    layers = range(model.n_layers) if params.layers is None else params.layers
    return tuple(model.site(layer, "last") for layer in layers)
