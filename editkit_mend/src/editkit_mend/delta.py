"""MEND's change: the factors of the edits' gradient, through the editor's networks.

All requests are read on the model as it is, each by itself, and their changes add up. So the change
of a batch is the sum of the changes that its edits have alone.

Source: Mitchell et al. 2022, section 3.
Differs: The authors average the loss over a batch, which weakens every edit by the number of edits.

Legend: d_out, d_in: sides of W; tokens: factors of all requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from editkit_core import EditableModel, EditContext, EditRequest, Patch, Site
from editkit_core.errors import InvalidParameterError, NonFiniteEditError
from editkit_core.models.pairs import nll, pair_batch, pair_logits
from editkit_core.numerics.evaluating import evaluating
from editkit_core.patch.digests import stack_digest
from editkit_core.patch.format import LowRankEntry
from editkit_mend.editor import checked_editor, method_ref, read_networks, target_fingerprint
from editkit_mend.networks import Factors, Networks
from editkit_mend.params import MendParams
from editkit_mend.side import changed

READ_AT_ONCE = 16


def compute_delta(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: MendParams,
    context: EditContext,
) -> Patch:
    """Return a patch with one low-rank entry a weight; the model is left bit-identical.

    Raises:
        EditorMissingError: The context has no editor, or another method's.
        BaseMismatchError: The editor was trained for another model.
        PatchFormatError: The editor is damaged.
        InvalidParameterError: The sites are not the editor's.
        NonFiniteEditError: A factor is not finite.
        RequestError: A prompt is too long or a target has no token.
    """
    editor = checked_editor(context.editor, model)
    networks = read_networks(editor, model, context.memo)
    if tuple(sites) != tuple(target.site for target in networks.targets):
        raise InvalidParameterError(
            f"MEND writes the {len(networks.targets)} weights its editor was trained for, got "
            f"{len(sites)} other sites. Give those that locate returns."
        )
    with torch.inference_mode(False), torch.no_grad(), evaluating(model.model):
        factors, reports = _changes(model, networks, requests, params.strength, context)
    return Patch.from_parts(
        entries=[_entry(site, factors[site.module]) for site in sites],
        method=method_ref(),
        base=target_fingerprint(model, networks),
        edits=requests,
        params={**editor.params, "strength": params.strength},
        seed=context.seed,
        metrics={
            "editor": editor.id,
            "editor_digest": editor.content_digest,
            "edits": reports,
        },
        computed_on=stack_digest(context.stack),
    )


def _changes(
    model: EditableModel,
    networks: Networks,
    requests: Sequence[EditRequest],
    strength: float,
    context: EditContext,
) -> tuple[dict[str, Factors], list[dict[str, Any]]]:  # Any: JSON values
    parts: list[Mapping[str, Factors]] = []
    pairs = [(request.text, request.target_new) for request in requests]
    context.progress.start("editing", len(requests))
    try:
        for first in range(0, len(pairs), READ_AT_ONCE):
            some = pairs[first : first + READ_AT_ONCE]
            made = networks(networks.read(model, pair_batch(model, some, end=True)))
            parts.append({name: _scaled(name, f, strength) for name, f in made.items()})
            context.progress.advance(len(some))
    finally:
        context.progress.finish()
    joined = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    return joined, _reports(model, requests, pairs, joined)


def _scaled(name: str, factors: Factors, strength: float) -> Factors:
    left = strength * factors.left
    if not bool(torch.isfinite(left).all() and torch.isfinite(factors.right).all()):
        raise NonFiniteEditError(
            f"The change of {name} is not finite. Train the editor again with a smaller lr, or "
            "edit with a smaller strength."
        )
    return Factors(left=left, right=factors.right, rows=factors.rows)


def _joined(parts: Sequence[Factors]) -> Factors:
    """Put the factors of several readings one after the other."""
    return Factors(
        left=torch.cat([part.left for part in parts]),
        right=torch.cat([part.right for part in parts]),
        rows=torch.cat([part.rows for part in parts]),
    )


def _reports(
    model: EditableModel,
    requests: Sequence[EditRequest],
    pairs: Sequence[tuple[str, str]],
    factors: Mapping[str, Factors],
) -> list[dict[str, Any]]:  # Any: JSON values
    """Say how likely each target was, and is with the change."""
    before = _chances(model, pairs)
    with changed(model, factors):
        after = _chances(model, pairs)
    return [
        {"subject": r.subject, "p_target_before": _rounded(b), "p_target_after": _rounded(a)}
        for r, b, a in zip(requests, before, after, strict=True)
    ]


def _chances(model: EditableModel, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return the geometric mean of each target's token probabilities."""
    chances: list[Tensor] = []
    for first in range(0, len(pairs), READ_AT_ONCE):
        batch = pair_batch(model, pairs[first : first + READ_AT_ONCE])
        chances.append((-nll(pair_logits(model, batch), batch.labels)).exp())
    return torch.cat(chances).tolist()


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _entry(site: Site, factors: Factors) -> LowRankEntry:
    """Return ΔW = leftᵀ right, with no more factors than the weight's shorter side.

    Where there are more tokens than that, the product is taken in float64 and one factor is the
    identity: the same change, by fewer numbers.
    """
    left, right = factors.left.float().cpu(), factors.right.float().cpu()
    tokens, d_out, d_in = left.shape[0], left.shape[1], right.shape[1]
    u, v = left.T, right  # (d_out, tokens), (tokens, d_in)
    if tokens > min(d_out, d_in):
        whole = u.double() @ v.double()  # (d_out, tokens) @ (tokens, d_in)
        u, v = (torch.eye(d_out), whole) if d_out <= d_in else (whole, torch.eye(d_in))
    return LowRankEntry(site=site, u=u.float().numpy(), v=v.float().numpy())
