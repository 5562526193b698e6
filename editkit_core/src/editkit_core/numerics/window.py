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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs
import torch
from torch import Tensor

from editkit_core.errors import (
    DeltaTooLargeError,
    InvalidRequestError,
    UnsupportedModelError,
)
from editkit_core.numerics.batch_solve import Change, Solves
from editkit_core.numerics.covariance import Covariance, load_covariances
from editkit_core.numerics.history import NO_KEYS
from editkit_core.numerics.keys import context_pairs, edited_position, keys_at, mention_keys
from editkit_core.numerics.probability import target_probabilities
from editkit_core.numerics.states import states_at
from editkit_core.numerics.value_opt import ValueJob, ValueResult, optimise_values
from editkit_core.patch.overlay import Overlay
from editkit_core.types import EditContext, EditRequest, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.numerics.value_loss import ValueSettings
    from editkit_core.numerics.window_params import WindowParams
    from editkit_core.patch.kinds import WeightEntry

__all__ = [
    "LayerChange",
    "LayerStatistics",
    "Solve",
    "Stream",
    "System",
    "Target",
    "WindowEdit",
    "averaged_keys",
    "batch_report",
    "check_batch",
    "find_targets",
    "spread_targets",
    "train_jointly",
    "window_covariances",
    "window_sites",
]


class LayerStatistics(Solves, Protocol):
    """What a layer is solved with: C, factored, or a projection."""

    @property
    def origin(self) -> dict[str, Any]:  # Any: JSON values
        """Where it comes from, for a patch's metrics."""

    def gram(self, rows: Tensor) -> Tensor:
        """Return V C Vᵀ for ``rows (n, d_in)``, ``(n, n)`` float64 on the CPU."""


@attrs.frozen(eq=False, kw_only=True)
class System:
    """What one layer is to solve.

    Attributes:
        site: The weight.
        keys: K, ``(d_in, n)`` float64 on the CPU.
        residuals: R, ``(d_out, n)`` float64 on the CPU.
        covariance: C of the layer, or what the method solves with in its place.
        earlier: K_p, ``(d_in, p)`` float64 on the CPU: keys of edits that are on the model already
            and are to keep what they have; p may be 0.
    """

    site: Site
    keys: Tensor
    residuals: Tensor
    covariance: LayerStatistics
    earlier: Tensor = NO_KEYS


Solve = Callable[[System], Change]


@attrs.frozen(eq=False, kw_only=True)
class Target:
    """The value an edit is to reach at the last layer.

    Attributes:
        value: z, ``(d,)`` float64 on the CPU.
        found: How it was found.
    """

    value: Tensor
    found: ValueResult


@attrs.frozen(eq=False, kw_only=True)
class Stream:
    """What is to be reached at one kind of projection.

    Attributes:
        sites: The projection of each layer of the window, from the first on.
        targets: Z, ``(n, d)`` float64: what ``read`` is to give at the edited tokens.
        covariances: C of each layer.
        read: Module whose output is to reach Z.
    """

    sites: Sequence[Site]
    targets: Tensor
    covariances: Sequence[LayerStatistics]
    read: str


@attrs.frozen(eq=False, kw_only=True)
class LayerChange:
    """The change of one layer and how it came about.

    Attributes:
        site: The weight.
        change: Δ = u v.
        keys: K, ``(d_in, n)`` float64.
        missing: ‖z - h‖ of each edit before this layer changed, ``(n,)`` float64.
        weight_norm: ‖W‖, in Frobenius norm.
    """

    site: Site
    change: Change
    keys: Tensor
    missing: Tensor
    weight_norm: float

    @classmethod
    def joined(cls, changes: Sequence[LayerChange]) -> LayerChange:
        """Return changes of one layer, each computed on top of those before it, as one."""
        first = changes[0]
        return cls(
            site=first.site,
            change=Change(
                u=torch.cat([part.change.u for part in changes], dim=1),
                v=torch.cat([part.change.v for part in changes]),
                condition=max(part.change.condition for part in changes),
            ),
            keys=torch.cat([part.keys for part in changes], dim=1),
            missing=torch.cat([part.missing for part in changes]),
            weight_norm=first.weight_norm,
        )

    @property
    def relative_norm(self) -> float:
        """‖Δ‖ / ‖W‖."""
        u, v = self.change.u, self.change.v
        gram = (u.T @ u) * (v @ v.T)  # (n, n)
        return float(gram.sum().clamp(min=0).sqrt()) / self.weight_norm

    @property
    def entry(self) -> WeightEntry:
        """The change as a patch entry: factors, or the full matrix where that is smaller."""
        from editkit_core.patch.format import DenseEntry, LowRankEntry

        u, v = self.change.u, self.change.v
        (d_out, n), d_in = u.shape, v.shape[1]
        if n * (d_out + d_in) < d_out * d_in:
            return LowRankEntry(site=self.site, u=u.float().numpy(), v=v.float().numpy())
        return DenseEntry(site=self.site, delta=(u @ v).float().numpy())


@attrs.frozen(eq=False, kw_only=True)
class WindowEdit:
    """The changes of a window.

    Attributes:
        layers: One a layer and projection, in the order they were made.
        left: ‖z - h‖ of each edit after all layers changed, ``(n,)`` float64.
        left_before: As ``left``, of the streams that were written before it.
    """

    layers: tuple[LayerChange, ...]
    left: Tensor
    left_before: tuple[Tensor, ...] = ()

    @classmethod
    def joined(cls, parts: Sequence[WindowEdit]) -> WindowEdit:
        """Return the changes of the parts of a batch as one; they add up."""
        if len(parts) == 1:
            return parts[0]
        layers = zip(*(part.layers for part in parts), strict=True)
        return cls(
            layers=tuple(LayerChange.joined(changes) for changes in layers),
            left=torch.cat([part.left for part in parts]),
            left_before=tuple(
                torch.cat(lefts) for lefts in zip(*(p.left_before for p in parts), strict=True)
            ),
        )

    @contextmanager
    def shown(self, model: EditableModel) -> Iterator[None]:
        """Let a model behave as if it were changed; its weights stay as they are."""
        with ExitStack() as shown:
            for layer in self.layers:
                side = Overlay(model.module(layer.site.module), [(layer.entry, 1.0)])
                shown.callback(side.remove)
            yield


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


def batch_report(
    model: EditableModel,
    requests: Sequence[EditRequest],
    targets: Sequence[Target],
    edit: WindowEdit,
    covariances: Sequence[LayerStatistics],
) -> Mapping[str, Any]:  # Any: JSON values
    """Return what a patch says about how it was made, as JSON values.

    Lists have one number an edit, in the order of the requests. Where more than one kind of
    projection changed, each layer's numbers say of which they are.
    """
    attention: dict[str, Any] = {}  # Any: JSON values
    alone = [target.found.without_attention for target in targets]
    if None not in alone:
        attention["p_target_without_attention"] = [_rounded(p) for p in alone if p is not None]
    if edit.left_before:
        (left,) = edit.left_before
        attention["missing_left_attention"] = [_rounded(value) for value in left.tolist()]
    several = len({layer.site.role for layer in edit.layers}) > 1
    before = target_probabilities(model, requests)
    with edit.shown(model):
        after = target_probabilities(model, requests)
    return {
        "layers": [
            {
                "layer": layer.site.layer,
                **({"role": layer.site.role} if several else {}),
                "delta_norm_relative": _rounded(layer.relative_norm),
                "missing_mean": _rounded(float(layer.missing.mean())),
                "condition": _rounded(layer.change.condition),
                "covariance": covariance.origin,
            }
            for layer, covariance in zip(edit.layers, covariances, strict=True)
        ],
        "missing_left": [_rounded(value) for value in edit.left.tolist()],
        "p_target_before": [_rounded(value) for value in before],
        "p_target_after": [_rounded(value) for value in after],
        "p_target_with_value": [_rounded(t.found.probabilities[-1]) for t in targets],
        "updates": [target.found.updates for target in targets],
        **attention,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")  # six digits are enough to judge an edit by
