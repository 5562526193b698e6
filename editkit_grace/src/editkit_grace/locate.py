"""Where GRACE puts its codebook: one projection of one block's feed-forward."""

from __future__ import annotations

from collections.abc import Sequence

from editkit_core import EditableModel, EditContext, EditRequest, Site
from editkit_core.errors import InvalidParameterError, InvalidRequestError, did_you_mean
from editkit_core.models.pairs import pair_row
from editkit_grace.params import GraceParams


def locate(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: GraceParams,
    context: EditContext,
) -> tuple[Site, ...]:
    """Return the one module that is gated for all requests.

    Its layer is the parameters': causal tracing looks for where a subject is read, which says
    nothing about where a whole prompt is told from others, so ``context.locate`` changes nothing
    and is refused.

    Raises:
        InvalidRequestError: There is no request, or a prompt leaves nothing to replace.
        EmptyTargetError: A target has no token of its own.
        PromptTooLongError: Prompt and target do not fit the model's context.
        LayerOutOfRangeError: The model has no such layer.
        InvalidParameterError: The feed-forward has no such projection, the stack has nothing to
            replace, or a traced layer is asked for.
        UnsupportedModelError: The encoder is asked for and there is none.
    """
    if context.locate == "trace":
        raise InvalidParameterError(
            "GRACE tells whole prompts apart; causal tracing finds where a subject is read. Leave "
            "the traced layer out and give layer=, or take the preset's.",
            parameter="locate",
        )
    if not requests:
        raise InvalidRequestError("There is nothing to edit: no requests were given.")
    site = site_of(model, params)
    _refuse_without_effect(model, params)
    for request in requests:
        row = pair_row(model, request.text, request.target_new)
        if params.replacement == "replace_prompt" and _length(model, row.source, row.first) < 2:
            raise InvalidRequestError(
                f"The prompt {request.text!r} is one token; replace_prompt replaces what stands "
                "before the last one. Use replacement=replace_last.",
                prompt=request.text,
            )
    return (site,)


def site_of(model: EditableModel, params: GraceParams) -> Site:
    """Return the projection that the parameters name."""
    layer = layer_of(model, params)
    paths = {path.rpartition(".")[2]: path for path in model.mlp_projections(layer, params.stack)}
    down = model.family.mlp_down(layer, params.stack)
    if params.projection is not None and params.projection not in paths:
        raise InvalidParameterError(
            f"The feed-forward of layer {layer} has no projection {params.projection!r}, only "
            f"{', '.join(paths)}.{did_you_mean(params.projection, paths)}",
            parameter="projection",
        )
    module = down if params.projection is None else paths[params.projection]
    return Site(
        module=module,
        parameter=f"{module}.weight",
        role="mlp_down" if module == down else "mlp_projection",
        layer=layer,
        token="last",
    )


def layer_of(model: EditableModel, params: GraceParams) -> int:
    """Return the parameters' layer for this model, counted within its stack."""
    if params.layer is not None:
        return params.layer
    depth = model.n_layers if params.stack == "decoder" else model.n_encoder_layers
    return max(0, min(int(params.layer_fraction * depth + 0.5), depth - 2))


def _refuse_without_effect(model: EditableModel, params: GraceParams) -> None:
    if not model.is_encoder_decoder or params.stack != "decoder":
        return
    if params.replacement == "replace_prompt":
        raise InvalidParameterError(
            "In a decoder behind an encoder the query is the first column, so replace_prompt has "
            "nothing to replace. Use replacement=replace_last or replace_all, or stack=encoder.",
            parameter="replacement",
        )


def _length(model: EditableModel, source: Sequence[int], first: int) -> int:
    """Return how many tokens a prompt has."""
    return len(source) if model.is_encoder_decoder else first
