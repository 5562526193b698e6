"""Where ROME edits: the feed-forward down projection of one layer."""

from __future__ import annotations

from collections.abc import Sequence

from editkit_core import EditableModel, EditContext, EditRequest, Site
from editkit_core.errors import InvalidRequestError, UnsupportedModelError
from editkit_rome.info import DECODERS_ONLY
from editkit_rome.params import RomeParams


def locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: RomeParams,
    context: EditContext,
) -> tuple[Site, ...]:
    """Return the one site that all requests are written to.

    Its layer is the parameters', or, when the context asks for a trace, the one whose feed-forward
    has the largest indirect effect at the subject's last token, averaged over the requests.

    Raises:
        UnsupportedModelError: The model is an encoder-decoder.
        InvalidRequestError: There is no request.
        SubjectNotInPromptError: No token stands for a subject.
        EmptyTargetError: A target has no token of its own.
        LayerOutOfRangeError: The model has no such layer.
    """
    refuse_encoder_decoder(model)
    if not requests:
        raise InvalidRequestError("There is nothing to edit: no requests were given.")
    for request in requests:
        model.subject_position(request, params.fact_token, target=request.target_new)
    layer = traced_layer(model, requests, context) if context.locate == "trace" else None
    return (model.site(layer_of(model, params) if layer is None else layer, params.fact_token),)


def layer_of(model: EditableModel, params: RomeParams) -> int:
    """Return the parameters' layer for this model."""
    if params.layer is not None:
        return params.layer
    return min(int(params.layer_fraction * model.n_layers + 0.5), model.n_layers - 1)


def traced_layer(
    model: EditableModel, requests: Sequence[EditRequest], context: EditContext
) -> int:
    """Return the layer that causal tracing proposes; draw the first request's heat map if asked."""
    from editkit_core.numerics.tracing import propose_layer, trace_request

    layer = propose_layer(model, requests, seed=context.seed, progress=context.progress)
    if context.heatmap is not None:
        from editkit_core.report.heatmap import draw_trace

        result = trace_request(model, requests[0], seed=context.seed, progress=context.progress)
        draw_trace(result, context.heatmap, force=context.overwrite)
    return layer


def refuse_encoder_decoder(model: EditableModel) -> None:
    """Refuse models that ROME was not made for.

    Raises:
        UnsupportedModelError: The model is an encoder-decoder.
    """
    if model.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{model.name} is an encoder-decoder. {DECODERS_ONLY}", model=model.name
        )
