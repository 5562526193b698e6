"""ROME and MEMIT as a plain script does them: the measure for ours, and a check of its changes.

The model is copied and the copy changed; values are found one request at a time; every key and
state is read from a forward pass through the whole model; ROME inverts C, MEMIT solves a system of
the weight's inner side.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import attrs
import torch
from plain_values import PlainValue, plain_value
from torch import Tensor

from editkit_core.models.editable import EditableModel
from editkit_core.models.text import pad_batch, position
from editkit_core.models.trace import record
from editkit_core.numerics.keys import before_mention
from editkit_core.numerics.value_loss import ValueSettings
from editkit_core.numerics.window_params import WindowParams
from editkit_core.types import EditRequest, Site
from editkit_rome.params import RomeParams


@attrs.frozen(eq=False)
class PlainEdit:
    """The changes of a model and how the values were found.

    Attributes:
        changes: Δ ``(d_out, d_in)`` float64: of each request with ROME, of each layer with MEMIT.
        values: How the values were found, one a request; none when they were given.
        targets: The value of each request, ``(d,)``.
    """

    changes: tuple[Tensor, ...]
    values: tuple[PlainValue, ...]
    targets: tuple[Tensor, ...]


def copied(model: EditableModel) -> EditableModel:
    """Return a model with weights of its own."""
    return EditableModel.wrap(copy.deepcopy(model.model), model.tokenizer, name="copy")


def ridged(moment: Tensor, ridge: float) -> Tensor:
    """Return C with a share of its mean diagonal added to it."""
    return moment + ridge * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)


def plain_rome(
    model: EditableModel,
    requests: Sequence[EditRequest],
    site: Site,
    contexts: Sequence[str],
    moment: Tensor,
    params: RomeParams,
    settings: ValueSettings,
) -> PlainEdit:
    """Edit one request after the other with ``r-rome``."""
    edited = copied(model)
    inverse = torch.linalg.inv(ridged(moment, params.covariance_ridge))  # (m, m)
    changes, values, targets = [], [], []
    for request in requests:
        key = _keys(edited, request, site, contexts, params.key_from).mean(dim=0)
        solved = inverse @ key
        reading = solved / (key @ solved)
        aware = params.v_insertion == "rank_one"
        found = plain_value(edited, request, site, contexts, settings, reading if aware else None)
        now = edited.weight(site).double() @ key + edited.module(site.module).bias.double()
        missing = found.delta.double() if aware else found.value.double() - now
        changes.append(torch.outer(missing, reading))
        _write(edited, site, changes[-1])
        values.append(found)
        targets.append(now + missing)
    return PlainEdit(tuple(changes), tuple(values), tuple(targets))


def plain_memit(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    contexts: Sequence[str],
    moments: Sequence[Tensor],
    params: WindowParams,
    settings: ValueSettings,
    *,
    weight: float,
    values: Sequence[Tensor] | None = None,
) -> PlainEdit:
    """Edit a batch with MEMIT; ``values`` (d,) each are found first when they are not given."""
    edited = copied(model)
    ridgeds = [ridged(moment, params.covariance_ridge) for moment in moments]
    found: list[PlainValue] = []
    if values is None:
        for request in requests:
            reading = None
            if params.v_insertion == "rank_one":
                key = _halved(_keys(edited, request, sites[-1], contexts, params.key_from))
                solved = torch.linalg.solve(ridgeds[-1], key)
                reading = solved / (key @ solved)
            found.append(plain_value(edited, request, sites[-1], contexts, settings, reading))
        values = [each.value for each in found]
    block = model.family.block(sites[-1].layer)
    changes = []
    for number, (site, moment) in enumerate(zip(sites, ridgeds, strict=True)):
        keys = torch.stack(
            [_halved(_keys(edited, each, site, contexts, params.key_from)) for each in requests], 1
        )  # (m, n)
        now = torch.stack([_state(edited, each, sites[-1], block) for each in requests])
        to_come = len(sites) - number
        share = 1 / to_come if params.spread == "linear" else to_come**-0.5
        missing = (torch.stack(list(values)).double() - now).T * share  # (d, n)
        solved = torch.linalg.solve(weight * moment + keys @ keys.T, keys)  # (m, n)
        changes.append(missing @ solved.T)  # (d, n) @ (n, m)
        _write(edited, site, changes[-1])
    return PlainEdit(tuple(changes), tuple(found), tuple(values))


def _keys(
    model: EditableModel, request: EditRequest, site: Site, contexts: Sequence[str], source: str
) -> Tensor:
    """Return a request's keys, ``(contexts, m)`` float64."""
    kinds = {"prompt": ("prompt",), "mention": ("mention",), "both": ("prompt", "mention")}[source]
    found = []
    for kind in kinds:
        rows, places = [], []
        for context in contexts:
            if kind == "prompt":
                pair = model.encode_pair(context + request.text, request.target_new)
                start, end = request.subject_span
                rows.append(pair.ids)
                places.append(pair.position((start + len(context), end + len(context)), site.token))
            else:
                before = before_mention(context)
                encoded = model.encode(before + request.subject)
                rows.append(encoded.ids)
                span = (len(before), len(encoded.text))
                places.append(position(encoded, span, "subject_last"))
        found.append(_read(model, rows, places, site.module, inputs=True))
    return torch.stack(found).mean(dim=0)


def _state(model: EditableModel, request: EditRequest, site: Site, module: str) -> Tensor:
    ids = model.encode(request.text).ids
    place = model.subject_position(request, site.token)
    return _read(model, [ids], [place], module, inputs=False)[0]


def _read(
    model: EditableModel,
    rows: Sequence[tuple[int, ...]],
    places: Sequence[int],
    module: str,
    *,
    inputs: bool,
) -> Tensor:
    batch = pad_batch(rows, model.pad_id)
    with torch.no_grad(), record(model.model, [module], inputs=inputs) as seen:
        model.model(**batch.inputs(), use_cache=False)
    return seen[module][torch.arange(len(rows)), list(places)].double()


def _halved(keys: Tensor) -> Tensor:
    return keys[0] if len(keys) == 1 else (keys[0] + keys[1:].mean(dim=0)) / 2


def _write(model: EditableModel, site: Site, change: Tensor) -> None:
    weight = model.weight(site)  # a view, (d_out, d_in)
    with torch.no_grad():
        weight.copy_((weight.double() + change).to(weight.dtype))
