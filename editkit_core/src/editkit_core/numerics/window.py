"""A batch of edits written to a window of layers: values first, then one solve a layer.

The target value z of each edit is found at the last layer of the window, on the model as it is.
Then each layer from the first on gets the change that closes its part of what is still missing::

    R = (Z - H) · share(q)         H: the states now, with the layers below changed already
    Δ = solve(K, R)                K: averaged keys of the edits at this layer, now

with q layers still to come, this one included, and share(q) = 1/q or 1/√q. The key of an edit is
half that of the bare prompt and half the mean over the prompts after contexts. Nothing is written:
layers changed so far are shown as side paths.

Source: Meng et al. 2023, "Mass-Editing Memory in a Transformer", algorithm 1.
Differs: Values of all edits are optimised together; contexts are seeded and stored in the patch.

Legend: d_out, d_in: sides of a weight; n: edits; d: width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editkit_core.errors import DeltaTooLargeError
from editkit_core.numerics.batch_solve import Change
from editkit_core.numerics.history import NO_KEYS
from editkit_core.numerics.keys import context_pairs, edited_position, keys_at, mention_keys
from editkit_core.numerics.states import states_at
from editkit_core.numerics.value_opt import ValueJob, optimise_values
from editkit_core.numerics.window_change import (
    LayerChange,
    LayerStatistics,
    Solve,
    Stream,
    System,
    Target,
    WindowEdit,
)
from editkit_core.patch.overlay import Overlay
from editkit_core.types import EditContext, EditRequest, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.numerics.value_loss import ValueSettings
    from editkit_core.numerics.window_params import WindowParams

__all__ = ["averaged_keys", "find_targets", "spread_targets", "train_jointly"]


def find_targets(
    model: EditableModel,
    requests: Sequence[EditRequest],
    site: Site,
    contexts: Sequence[str],
    settings: ValueSettings,
    params: WindowParams,
    context: EditContext,
    covariance: LayerStatistics | None = None,
    attention: tuple[Site, LayerStatistics] | None = None,
) -> list[Target]:
    """Return the values the edits are to reach at the last layer, found all together.

    Args:
        model: The model as it is; it is only read.
        requests: The facts.
        site: The last layer of the window.
        contexts: Texts put before the prompts, the empty one first.
        settings: How values are optimised.
        params: The window's parameters.
        context: Told the progress.
        covariance: C of the last layer; needed for ``v_insertion="rank_one"``.
        attention: The last layer's attention output projection and its C, when it is written too.
    """

    def readings(where: tuple[Site, LayerStatistics | None] | None) -> Sequence[Tensor | None]:
        if where is None or where[1] is None or params.v_insertion != "rank_one":
            return [None] * len(requests)
        keys = averaged_keys(model, requests, where[0], contexts, params)  # (d_in, n)
        solved = where[1].solve(keys)
        return list((solved / (keys * solved).sum(dim=0)).T)  # r with r · k = 1

    jobs = [
        ValueJob(
            request=request,
            site=site,
            contexts=tuple(contexts),
            reading=reading,
            attention_reading=other,
        )
        for request, reading, other in zip(
            requests, readings((site, covariance)), readings(attention), strict=True
        )
    ]
    found = optimise_values(model, jobs, settings, context.progress, batch=params.value_batch)
    return [Target(value=result.value, found=result) for result in found]


def train_jointly(
    model: EditableModel,
    requests: Sequence[EditRequest],
    site: Site,
    contexts: Sequence[str],
    covariance: LayerStatistics,
    solve: Solve,
    settings: ValueSettings,
    params: WindowParams,
    context: EditContext,
    *,
    earlier: Tensor = NO_KEYS,
) -> tuple[list[Target], WindowEdit]:
    """Write a batch to one layer with its values trained on the finished change.

    The method's solve is asked for the change that gives each edit a unit value: its factor v is
    where the edits are read, whatever their values are. See :mod:`.joint_opt`.

    Raises:
        EditError: A key, value or change is not finite, degenerate or too large.
    """
    from editkit_core.numerics.joint_opt import optimise_jointly

    keys = averaged_keys(model, requests, site, contexts, params)  # (d_in, n)
    ones = torch.eye(len(requests), dtype=torch.float64)
    system = System(site=site, keys=keys, residuals=ones, covariance=covariance, earlier=earlier)
    read = solve(system)
    jobs = [ValueJob(request=r, site=site, contexts=tuple(contexts)) for r in requests]
    found = optimise_jointly(
        model,
        jobs,
        read.v,
        settings,
        context.progress,
        batch=params.value_batch,
        gram=covariance.gram(read.v) if params.keep_factor else None,
        keep=params.keep_factor,
    )
    values = torch.stack([result.delta for result in found]).double()  # (n, d)
    change = Change(u=values.T, v=read.v, condition=read.condition)
    layer = _layer_change(model, system, change, values, params)
    edit = WindowEdit(layers=(layer,), left=torch.zeros(len(requests)))
    return [Target(value=result.value, found=result) for result in found], edit


def averaged_keys(
    model: EditableModel,
    requests: Sequence[EditRequest],
    site: Site,
    contexts: Sequence[str],
    params: WindowParams,
) -> Tensor:
    """Return the key of each edit, ``(d_in, n)`` float64 on the CPU.

    That is half the bare prompt's and half the mean over the other contexts.
    """
    by_kind = []
    if params.key_from in ("prompt", "both"):
        places = []
        for request in requests:
            pairs = context_pairs(model, request, contexts)
            for pair, before in zip(pairs, contexts, strict=True):
                places.append((pair.ids, edited_position(pair, request, site, before)))
        by_kind.append(_halved(keys_at(model, site, places), len(requests)))
    if params.key_from in ("mention", "both"):
        keys = [mention_keys(model, site, request.subject, contexts) for request in requests]
        by_kind.append(_halved(torch.cat(keys), len(requests)))
    return torch.stack(by_kind).mean(dim=0).T


def _halved(keys: Tensor, n: int) -> Tensor:
    """Average ``keys (n · contexts, d_in)``, the bare one first, to ``(n, d_in)``."""
    grouped = keys.reshape(n, -1, keys.shape[1])
    if grouped.shape[1] == 1:
        return grouped[:, 0]
    return (grouped[:, 0] + grouped[:, 1:].mean(dim=1)) / 2


def spread_targets(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    contexts: Sequence[str],
    targets: Tensor,
    covariances: Sequence[LayerStatistics],
    solve: Solve,
    params: WindowParams,
    context: EditContext,
    *,
    read: str | None = None,
    earlier: Mapping[str, Tensor] | None = None,
    before: Sequence[Stream] = (),
) -> WindowEdit:
    """Close what is missing layer by layer; the model is left bit-identical.

    With streams ``before``, each layer changes one projection after the other, theirs first. Keys
    and what is missing are read anew for each, so a feed-forward's are those with the change of
    its layer's attention in place.

    Args:
        model: The model; changes are shown as side paths meanwhile.
        requests: The facts.
        sites: The window, from the first layer on.
        contexts: Texts put before the prompts, the empty one first.
        targets: Z, ``(n, d)`` float64: what ``read`` is to give at the edited tokens.
        covariances: C of each layer.
        solve: The method's own solve.
        params: The window's parameters.
        context: Told the progress.
        read: Module whose output is to reach Z; None means the last layer's block.
        earlier: By module the keys ``(d_in, p)`` of edits that are to keep what they have.
        before: Further projections of the same layers.

    Raises:
        EditError: A key or change is not finite, degenerate or too large.
    """
    read = read or model.family.block(sites[-1].layer)
    last = Stream(sites=sites, targets=targets, covariances=covariances, read=read)
    streams = (*before, last)
    bare = [
        (model.encode(request.text).ids, model.subject_position(request, sites[-1].token))
        for request in requests
    ]
    done: list[LayerChange] = []
    context.progress.start("writing layers", len(sites))
    try:
        with ExitStack() as shown:
            for number in range(len(sites)):
                share = _share(len(sites) - number, params)
                for stream in streams:
                    site = stream.sites[number]
                    missing = stream.targets - states_at(model, stream.read, bare)  # (n, d)
                    keys = averaged_keys(model, requests, site, contexts, params)
                    system = System(
                        site=site,
                        keys=keys,
                        residuals=missing.T * share,
                        covariance=stream.covariances[number],
                        earlier=(earlier or {}).get(site.module, NO_KEYS),
                    )
                    done.append(_layer_change(model, system, solve(system), missing, params))
                    entry = done[-1].entry
                    side = Overlay(model.module(site.module), [(entry, 1.0)])
                    shown.callback(side.remove)
                context.progress.advance(note=f"layer {sites[number].layer}")
            *left_before, left = (
                (stream.targets - states_at(model, stream.read, bare)).norm(dim=1)
                for stream in streams
            )
    finally:
        context.progress.finish()
    return WindowEdit(layers=tuple(done), left=left, left_before=tuple(left_before))


def _share(to_come: int, params: WindowParams) -> float:
    return 1 / to_come if params.spread == "linear" else to_come**-0.5


def _layer_change(
    model: EditableModel, system: System, change: Change, missing: Tensor, params: WindowParams
) -> LayerChange:
    made = LayerChange(
        site=system.site,
        change=change,
        keys=system.keys,
        missing=missing.norm(dim=1),
        weight_norm=float(model.weight(system.site).double().norm()),
    )
    if params.max_rel_norm is not None and made.relative_norm > params.max_rel_norm:
        raise DeltaTooLargeError(
            f"The change of {system.site.parameter} has {made.relative_norm:.2f} times the "
            f"weight's norm, more than max_rel_norm={params.max_rel_norm:g}. Such a change "
            "disturbs everything. Edit fewer facts at once, lower clamp_norm, or raise "
            "max_rel_norm.",
            found=made.relative_norm,
            limit=params.max_rel_norm,
        )
    return made
