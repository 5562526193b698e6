"""The whole edit of a window of layers, for methods that differ in their solve alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from editkit_core.errors import InvalidParameterError
from editkit_core.numerics.contexts import sample_contexts
from editkit_core.numerics.evaluating import evaluating
from editkit_core.numerics.window import (
    LayerStatistics,
    Solve,
    Stream,
    Target,
    batch_report,
    check_batch,
    find_targets,
    spread_targets,
    train_jointly,
    window_covariances,
)
from editkit_core.numerics.window_params import WindowParams
from editkit_core.numerics.window_patch import window_patch
from editkit_core.types import EditContext, EditRequest, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.numerics.value_loss import ValueSettings
    from editkit_core.patch.format import MethodRef, Patch

__all__ = ["edit_window", "window_contexts"]


def edit_window(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    solve: Solve,
    *,
    params: WindowParams,
    context: EditContext,
    method: MethodRef,
    metrics: Mapping[str, Any],  # Any: JSON values
    covariances: Sequence[LayerStatistics] | None = None,
    settings: ValueSettings | None = None,
    read: str | None = None,
    keys_after: bool = False,
    attention: Sequence[Site] = (),
) -> Patch:
    """Find the values, write the layers one after the other, and return the patch.

    The model is left bit-identical.

    Args:
        model: The model.
        requests: The facts.
        sites: The window, from the first layer on.
        solve: The method's own solve of a layer.
        params: The window's parameters.
        context: Seed, statistics and progress.
        method: Who computes it.
        metrics: What the method adds to what a patch says about how it was made.
        covariances: What each layer is solved with; None takes its key statistics.
        settings: How values are optimised; None takes the parameters' own.
        read: Module whose output is to reach the values; None means the last layer's block.
        keys_after: Whether the evidence holds the keys of the edited model instead of those that
            each layer was solved with.
        attention: The attention's output projections of the same layers, when they are to reach
            the values found for them; in each layer they change first.

    Raises:
        RequestError: Two requests ask the same, or a prompt or target cannot be read.
        StatisticsError: Key statistics are missing, damaged or cannot be solved with.
        EditError: A value, key or change is not finite or too large.
    """
    check_batch(requests)
    with evaluating(model.model):
        if covariances is None:
            covariances = window_covariances(model, sites, params, context)
        contexts = window_contexts(model, params, context)
        settings = settings or params.value_settings(seed=context.seed)
        before: tuple[Stream, ...] = ()
        solved_with = covariances
        others = window_covariances(model, attention, params, context) if attention else []
        if params.v_insertion == "joint":
            _check_joint(sites, settings, read)
            targets, edit = train_jointly(
                model,
                requests,
                sites[-1],
                contexts,
                covariances[-1],
                solve,
                settings,
                params,
                context,
                keys_after=keys_after,
            )
        else:
            targets = find_targets(
                model,
                requests,
                sites[-1],
                contexts,
                settings,
                params,
                context,
                covariances[-1],
                (attention[-1], others[-1]) if attention else None,
            )
            if attention:
                before = (_attention_stream(model, attention, targets, others),)
                pairs = zip(others, covariances, strict=True)
                solved_with = [one for pair in pairs for one in pair]
            edit = spread_targets(
                model,
                requests,
                sites,
                contexts,
                torch.stack([target.value for target in targets]),
                covariances,
                solve,
                params,
                context,
                read=read,
                keys_after=keys_after,
                before=before,
            )
        report = batch_report(model, requests, targets, edit, solved_with)
    return window_patch(
        model,
        requests,
        targets,
        edit,
        method=method,
        params=params,
        contexts=contexts,
        context=context,
        metrics={**report, **metrics},
        keys=edit.last_keys if keys_after else None,
    )


def _attention_stream(
    model: EditableModel,
    sites: Sequence[Site],
    targets: Sequence[Target],
    covariances: Sequence[LayerStatistics],
) -> Stream:
    """Return what the attention's output projections are to reach."""
    values = [target.found.attention_value for target in targets]
    return Stream(
        sites=sites,
        targets=torch.stack([value for value in values if value is not None]),
        covariances=covariances,
        read=model.family.attention(sites[-1].layer),
    )


def _check_joint(sites: Sequence[Site], settings: ValueSettings, read: str | None) -> None:
    if len(sites) > 1:
        raise InvalidParameterError(
            f"v_insertion=joint trains the change of one layer; the window has {len(sites)}. Give "
            "one layer, or use v_insertion=token.",
            parameter="v_insertion",
        )
    if settings.attention:
        raise InvalidParameterError(
            "v_insertion=joint trains no values of attention. Set attention_values=false, or use "
            "v_insertion=token.",
            parameter="v_insertion",
        )


def window_contexts(
    model: EditableModel, params: WindowParams, context: EditContext
) -> tuple[str, ...]:
    """Return the texts put before prompts, the empty one first."""
    seed = context.seed if params.context_seed is None else params.context_seed
    return sample_contexts(model, params.contexts, seed=seed)
