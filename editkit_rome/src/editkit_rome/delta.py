"""ROME's change: key, value, one rank-one term a request, each on top of the ones before.

Request i sees the model with the terms of the requests before it, shown as a side path: no weight
is written at any time.

Source: Meng et al. 2022, section 3.1; Gupta et al. 2024 for the variants.
Differs: The averaged key is used wherever a key occurs (``r-rome``); contexts are seeded and stored
    in the patch; a change that is too large is refused instead of returned.

Legend: d_out, d_in: sides of W; n: requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor

from editkit_core import EditableModel, EditContext, EditRequest, Patch, Site
from editkit_core.errors import DegenerateKeyError, DeltaTooLargeError, InvalidParameterError
from editkit_core.models.holding import fetch
from editkit_core.numerics.contexts import sample_contexts
from editkit_core.numerics.covariance import Covariance, load_covariance
from editkit_core.numerics.evaluating import evaluating
from editkit_core.numerics.keys import mention_keys, subject_keys
from editkit_core.numerics.probability import target_probability
from editkit_core.numerics.value_opt import ValueJob, ValueResult, ValueSettings, optimise_values
from editkit_core.params import unstructure
from editkit_core.patch.digests import stack_digest
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import Evidence, LowRankEntry, MethodRef
from editkit_core.patch.overlay import Overlay
from editkit_rome import __version__
from editkit_rome.locate import refuse_encoder_decoder
from editkit_rome.params import RomeParams
from editkit_rome.rank_one import RankOne, direction

# Rounding both factors to float32 leaves about 1e-7.
MAX_RESIDUAL = 1e-4


@attrs.frozen(eq=False, kw_only=True)
class Term:
    """The rank-one term of one request and what it was made of.

    Attributes:
        update: Δ = u v.
        key: The key that got the value, ``(d_in,)`` float64.
        value: v*, ``(d_out,)`` float64.
        found: How the value was found.
        residual: ‖(W + Δ) k + b - v*‖ / ‖v*‖ with the rounded factors.
        relative_norm: ‖Δ‖ / ‖W‖.
    """

    update: RankOne
    key: Tensor
    value: Tensor
    found: ValueResult
    residual: float
    relative_norm: float


def compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: RomeParams,
    context: EditContext,
) -> Patch:
    """Return a patch with one rank-one entry a request; the model is left bit-identical.

    Raises:
        UnsupportedModelError: The model is an encoder-decoder.
        InvalidParameterError: There is not exactly one site.
        StatisticsError: Key statistics are missing, damaged or cannot be solved with.
        EditError: A value, key or change is not finite, degenerate or too large.
        RequestError: A prompt is too long or a target has no token.
    """
    refuse_encoder_decoder(model)
    if len(sites) != 1:
        raise InvalidParameterError(f"ROME writes one site, got {len(sites)}. Give one layer.")
    site = sites[0]
    with evaluating(model.model):
        covariance = _covariance(model, site, params, context)
        contexts = _contexts(model, params, context)
        terms, reports = _edit_in_turn(model, site, requests, contexts, covariance, params, context)
    return Patch.from_parts(
        entries=[_entry(site, term) for term in terms],
        method=MethodRef(name="rome", dist="editkit-rome", version=__version__),
        base=base_fingerprint(model, [site.parameter]),
        edits=requests,
        params=unstructure(params),
        seed=context.seed,
        contexts=contexts,
        evidence=Evidence(
            module=site.module,
            keys=torch.stack([term.key for term in terms]).float().numpy(),  # (n, d_in)
            values=torch.stack([term.value for term in terms]).float().numpy(),  # (n, d_out)
        ),
        metrics={"layer": site.layer, "covariance": covariance.origin, "edits": reports},
        computed_on=stack_digest(context.stack),
    )


def value_settings(params: RomeParams, context: EditContext) -> ValueSettings:
    """Return the settings of the value's optimisation."""
    return ValueSettings(
        steps=params.v_steps,
        lr=params.v_lr,
        lr_mode=params.v_lr_mode,
        weight_decay=params.v_weight_decay,
        clamp_norm=params.clamp_norm,
        clamp_mode=params.clamp_mode,
        loss_stop=params.loss_stop,
        kl_factor=params.kl_factor,
        kl_prompts=params.kl_prompts,
        kl_position=params.kl_position,
        essence_samples=params.essence_samples,
        essence_length=params.essence_length,
        essence_factor=params.essence_factor,
        ending_factor=params.ending_factor,
        seed=context.seed,
    )


def _edit_in_turn(
    model: EditableModel,
    site: Site,
    requests: Sequence[EditRequest],
    contexts: tuple[str, ...],
    covariance: Covariance,
    params: RomeParams,
    context: EditContext,
) -> tuple[list[Term], list[dict[str, Any]]]:  # Any: JSON values
    terms: list[Term] = []
    reports: list[dict[str, Any]] = []  # Any: JSON values
    context.progress.start("editing", len(requests))
    try:
        with _shown(model, site) as side:
            for request in requests:
                before = target_probability(model, request)
                terms.append(
                    _term(model, site, request, contexts, terms, covariance, params, context)
                )
                side.set([(_entry(site, term), 1.0) for term in terms])
                after = target_probability(model, request)
                reports.append(_report(request, terms[-1], before, after))
                context.progress.advance(note=request.subject)
    finally:
        context.progress.finish()
    return terms, reports


def _term(
    model: EditableModel,
    site: Site,
    request: EditRequest,
    contexts: tuple[str, ...],
    earlier: Sequence[Term],
    covariance: Covariance,
    params: RomeParams,
    context: EditContext,
) -> Term:
    keys = _keys(model, site, request, contexts, params)  # (contexts, d_in)
    bare, averaged = keys[0], keys.mean(dim=0)
    key = bare if params.variant == "p-rome" else averaged
    constrained = averaged if params.variant == "r-rome" else bare
    read = direction(key=key, covariance=covariance, constrained=constrained)
    aware = params.v_insertion == "rank_one"
    job = ValueJob(
        request=request, site=site, contexts=contexts, reading=read.reading if aware else None
    )
    settings = value_settings(params, context)
    found = optimise_values(model, [job], settings, context.progress)[0]
    now = _output(model, site, constrained, earlier)  # (d_out,)
    value = now + found.delta.double() if aware else found.value
    update = read.carrying(value - now)
    reached = now + update.on(constrained)
    term = Term(
        update=update,
        key=constrained,
        value=value,
        found=found,
        residual=float((reached - value).norm() / value.norm()),
        relative_norm=update.norm / float(model.weight(site).double().norm()),
    )
    _guard(term, request, params)
    return term


def _keys(
    model: EditableModel,
    site: Site,
    request: EditRequest,
    contexts: tuple[str, ...],
    params: RomeParams,
) -> Tensor:
    if params.key_from == "prompt":
        return subject_keys(model, site, request, contexts)
    mentioned = mention_keys(model, site, request.subject, contexts)
    if params.key_from == "mention":
        return mentioned
    return (subject_keys(model, site, request, contexts) + mentioned) / 2


def _output(model: EditableModel, site: Site, key: Tensor, earlier: Sequence[Term]) -> Tensor:
    """Return what the site gives for ``key (d_in,)`` now, ``(d_out,)`` float64 on the CPU.

    That is W k + b in float64, with overlaid patches and the earlier requests' terms.
    """
    module = model.module(site.module)
    output = model.weight(site).to("cpu", torch.float64) @ key  # (d_out, d_in) @ (d_in,)
    bias = fetch(module, "bias") if isinstance(getattr(module, "bias", None), Tensor) else None
    if bias is not None:
        output = output + bias.to("cpu", torch.float64)
    for active in model.ledger.effective:
        for entry in active.patch.weight_entries if active.mode == "overlay" else ():
            if entry.site.module == site.module:
                output = output + active.scale * (entry.delta() @ key)  # (d_out, d_in) @ (d_in,)
    for term in earlier:
        output = output + term.update.on(key)
    return output


def _guard(term: Term, request: EditRequest, params: RomeParams) -> None:
    if not term.residual <= MAX_RESIDUAL:
        raise DegenerateKeyError(
            f"After rounding the key of {request.subject!r} misses its value by "
            f"{term.residual:.1e}. Use variant=r-rome, another layer, or better key statistics.",
            subject=request.subject,
            residual=term.residual,
        )
    if params.max_rel_norm is not None and term.relative_norm > params.max_rel_norm:
        raise DeltaTooLargeError(
            f"The change for {request.subject!r} has {term.relative_norm:.2f} times the norm of "
            f"the weight, more than max_rel_norm={params.max_rel_norm:g}. Such a change disturbs "
            "everything. Lower clamp_norm, use variant=r-rome or another layer, or raise "
            "max_rel_norm.",
            subject=request.subject,
            found=term.relative_norm,
            limit=params.max_rel_norm,
        )


def _report(
    request: EditRequest, term: Term, before: float, after: float
) -> dict[str, Any]:  # Any: JSON values
    report = {
        "subject": request.subject,
        "already_known": term.found.already_known,
        "p_target_before": before,
        "p_target_after": after,
        "p_target_with_value": term.found.probabilities[-1],
        "updates": term.found.updates,
        "loss": term.found.losses[-1],
        "delta_norm": term.update.norm,
        "delta_norm_relative": term.relative_norm,
        "value_change_relative": float(term.found.delta.norm()) / term.found.stream_norm,
        "constraint_residual": term.residual,
        "key_cosine": term.update.cosine,
    }
    return {name: _rounded(value) for name, value in report.items()}


def _rounded(value: Any) -> Any:  # Any: a JSON value; six digits are enough to judge an edit by
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _entry(site: Site, term: Term) -> LowRankEntry:
    return LowRankEntry(site=site, u=term.update.u.numpy(), v=term.update.v.numpy())


def _covariance(
    model: EditableModel, site: Site, params: RomeParams, context: EditContext
) -> Covariance:
    return load_covariance(
        model,
        site,
        mode=params.covariance,
        folder=context.statistics_dir,
        ridge=params.covariance_ridge,
        progress=context.progress,
        memo=context.memo,
    )


def _contexts(model: EditableModel, params: RomeParams, context: EditContext) -> tuple[str, ...]:
    if params.variant == "p-rome":
        return ("",)
    seed = context.seed if params.context_seed is None else params.context_seed
    return sample_contexts(model, params.contexts, seed=seed)


@contextmanager
def _shown(model: EditableModel, site: Site) -> Iterator[Overlay]:
    """Give a side path beside the site's module, without changes yet."""
    side = Overlay(model.module(site.module), ())
    try:
        yield side
    finally:
        side.remove()
