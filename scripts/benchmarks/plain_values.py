"""Target values as a plain script finds them: the measure for ours, and a check of its values.

One request at a time. Every step runs the whole model over the whole rows and computes the logits
of every token; as in the authors' code, no gradient of a weight is computed. The loss is the one
that ``editkit_core.numerics.value_opt`` documents; it is written once more here, without that code.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from editkit_core.models.editable import EditableModel
from editkit_core.models.text import EncodedPair, pad_batch, position
from editkit_core.models.trace import record, replace_output
from editkit_core.numerics.value_loss import ValueSettings
from editkit_core.types import SLOT, EditRequest, Site


@attrs.frozen(eq=False)
class PlainValue:
    """A value and how it was found.

    Attributes:
        value: v* = v0 + δ, ``(d,)`` float32.
        delta: δ.
        losses: L at each step.
    """

    value: Tensor
    delta: Tensor
    losses: tuple[float, ...]

    @property
    def updates(self) -> int:
        """How many times δ was changed."""
        return len(self.losses) - 1


@attrs.frozen(eq=False)
class _Row:
    ids: tuple[int, ...]
    edited: int
    columns: tuple[int, ...]  # where target tokens are predicted, or where drift is read
    labels: tuple[int, ...] = ()
    ending: int | None = None


def plain_value(
    model: EditableModel,
    request: EditRequest,
    site: Site,
    contexts: Sequence[str],
    settings: ValueSettings,
    reading: Tensor | None = None,
) -> PlainValue:
    """Optimise the value of one request, step by step through the whole model."""
    if settings.essence_samples or settings.attention or settings.probability_stop is not None:
        raise ValueError("The plain path has no essence texts, attention part or such a stop.")
    targets = [_target(model, request, site, text, settings) for text in contexts]
    templates = settings.kl_prompts if settings.kl_factor else ()
    drifts = [_drift(model, request, template, settings) for template in templates]
    rows = [*targets, *drifts]
    batch = pad_batch([row.ids for row in rows], model.pad_id)
    edited = torch.tensor([row.edited for row in rows])
    every = torch.arange(len(rows))
    block = model.family.block(site.layer)
    share = torch.zeros(batch.input_ids.shape)
    share[every, edited] = 1.0
    with (
        torch.no_grad(),
        record(model.model, [site.module], inputs=True) as keys,
        record(model.model, sorted({site.module, block})) as outputs,
    ):
        clean = model.model(**batch.inputs(), use_cache=False).logits.float().log_softmax(-1)
    if reading is not None:
        share = keys[site.module] @ reading.float()  # (rows, len)
    read = outputs[block if settings.output == "block" else site.module]
    before = read[0, targets[0].edited]
    stream = torch.stack([outputs[block][i, row.edited] for i, row in enumerate(targets)])
    size = float(stream.norm(dim=1).mean())
    relative = settings.lr_mode == "relative"
    unit = size / len(before) ** 0.5 if relative else 1.0
    reach = size if settings.clamp_mode == "stream" else float(before.norm())
    scaled = torch.zeros_like(before, requires_grad=True)
    adam = torch.optim.Adam([scaled], lr=settings.lr)
    losses: list[float] = []
    for step in range(settings.steps):
        delta = scaled * unit

        def add(output: Tensor, delta: Tensor = delta) -> Tensor:
            return output + share[..., None] * delta

        with replace_output(model.model, site.module, add):
            logs = model.model(**batch.inputs(), use_cache=False).logits.float().log_softmax(-1)
        scale = size if relative else float(before.norm()) ** 2
        loss = settings.weight_decay * torch.linalg.vector_norm(delta) / scale
        for i, row in enumerate(targets):
            said = logs[i, list(row.columns), list(row.labels)]
            loss = loss - said.mean() / len(targets)
            if row.ending is not None:
                told = _kl(clean[i, row.ending], logs[i, row.ending])
                loss = loss + settings.ending_factor * told / len(targets)
        for i, row in enumerate(drifts, start=len(targets)):
            drift = _kl(logs[i, row.columns[0]], clean[i, row.columns[0]])
            loss = loss + settings.kl_factor * drift / len(drifts)
        losses.append(float(loss.detach()))
        if losses[-1] < settings.loss_stop or step == settings.steps - 1:
            break
        (scaled.grad,) = torch.autograd.grad(loss, [scaled])
        adam.step()
        with torch.no_grad():
            limit = settings.clamp_norm * reach / unit
            scaled *= (limit / scaled.norm()).clamp(max=1.0)
    found = scaled.detach() * unit
    return PlainValue(before + found, found, tuple(losses))


def _target(
    model: EditableModel,
    request: EditRequest,
    site: Site,
    context: str,
    settings: ValueSettings,
) -> _Row:
    pair: EncodedPair = model.encode_pair(context + request.text, request.target_new)
    start, end = request.subject_span
    edited = pair.position((start + len(context), end + len(context)), site.token)
    last = len(pair.ids) - 1
    return _Row(
        ids=pair.ids if settings.ending_factor else pair.ids[:-1],
        edited=edited,
        columns=tuple(range(pair.n_prompt - 1, last)),
        labels=pair.target_ids,
        ending=last if settings.ending_factor else None,
    )


def _drift(
    model: EditableModel, request: EditRequest, template: str, settings: ValueSettings
) -> _Row:
    start = len(template.partition(SLOT)[0])
    encoded = model.encode(template.replace(SLOT, request.subject))
    edited = position(encoded, (start, start + len(request.subject)), "subject_last")
    read = edited if settings.kl_position == "subject_last" else len(encoded.ids) - 1
    return _Row(ids=encoded.ids, edited=edited, columns=(read,))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()
