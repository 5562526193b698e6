"""Which facts a batch edits, in which layers, and with which statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from editkit_core.errors import InvalidRequestError, UnsupportedModelError
from editkit_core.numerics.covariance import Covariance, load_covariances
from editkit_core.types import EditContext, EditRequest, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.numerics.window_params import WindowParams

__all__ = ["check_batch", "window_covariances", "window_sites"]


def check_batch(
    requests: Sequence[EditRequest], duplicates: Literal["refuse", "keep_last"] = "refuse"
) -> tuple[EditRequest, ...]:
    """Return the requests of a batch that is to be edited: one a fact.

    Args:
        requests: What is asked for.
        duplicates: What becomes of two answers to one question, or of the same edit twice.

    Raises:
        InvalidRequestError: There is no request, or two ask the same; both are named.
    """
    if not requests:
        raise InvalidRequestError("There is nothing to edit: no requests were given.")
    kept: dict[int, EditRequest] = {}
    seen: dict[tuple[str, str], int] = {}
    for number, request in enumerate(requests):
        facts = [request.text]
        if request.relation:
            facts.append(f"relation {request.relation}")
        for fact in facts:
            earlier = seen.get((request.subject.casefold(), fact), number)
            seen[request.subject.casefold(), fact] = number
            if earlier != number and duplicates == "refuse":
                raise _twice(requests, earlier, number, fact)
            kept.pop(earlier, None)
        kept[number] = request
    return tuple(kept.values())


def _twice(
    requests: Sequence[EditRequest], earlier: int, number: int, fact: str
) -> InvalidRequestError:
    one, other = requests[earlier], requests[number]
    return InvalidRequestError(
        f"Requests {earlier} and {number} are about the same fact ({fact!r} of "
        f"{other.subject!r}): {one.target_new!r} and {other.target_new!r}. Keep one, or set "
        "duplicates=keep_last.",
        first=earlier,
        second=number,
    )


def window_sites(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: WindowParams,
    context: EditContext,
    *,
    method: str,
) -> tuple[Site, ...]:
    """Return the sites of a window, from the first layer on.

    A trace proposes the last layer: the parameters' window is moved to end there.

    Raises:
        UnsupportedModelError: The model is an encoder-decoder.
        InvalidRequestError: There is no request.
        SubjectNotInPromptError: No token stands for a subject.
        EmptyTargetError: A target has no token of its own.
        LayerOutOfRangeError: The model has no such layer.
    """
    if model.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{model.name} is an encoder-decoder. {method} writes what one causal stack looks up "
            "at the subject's last token. Use a decoder model, or GRACE or MEND.",
            model=model.name,
        )
    if not requests:
        raise InvalidRequestError("There is nothing to edit: no requests were given.")
    for request in requests:
        model.subject_position(request, params.fact_token, target=request.target_new)
    layers = params.window(model.n_layers)
    if context.locate == "trace":
        from editkit_core.numerics.tracing import propose_layer

        last = propose_layer(model, requests, seed=context.seed, progress=context.progress)
        layers = tuple(sorted({max(last - layers[-1] + layer, 0) for layer in layers}))
    return tuple(model.site(layer, params.fact_token) for layer in layers)


def window_covariances(
    model: EditableModel, sites: Sequence[Site], params: WindowParams, context: EditContext
) -> list[Covariance]:
    """Find, check and factor the key statistics of every layer of the window."""
    return load_covariances(
        model,
        sites,
        mode=params.covariance,
        folder=context.statistics_dir,
        ridge=params.covariance_ridge,
        progress=context.progress,
        memo=context.memo,
    )
