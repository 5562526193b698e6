"""Training a few weights of a model that is not changed.

Each trained weight is a leaf of its own, W. Beside its module the side path x (W - W₀)ᵀ is shown,
so the model's own parameters keep their bits, ask for no gradient, and other patches stay in force.

Legend: d_out, d_in: sides of a weight; rows: requests of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import attrs
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editkit_core import EditableModel, EditContext, EditRequest, Site
from editkit_core.errors import NonFiniteEditError
from editkit_core.models.pairs import IGNORED, PairBatch, pair_batch
from editkit_ft.params import FtParams
from editkit_ft.steps import make_step


@attrs.frozen(eq=False, kw_only=True)
class Trained:
    """What training gave.

    Attributes:
        deltas: The change of each site's weight, ``(d_out, d_in)`` float32.
        losses: Mean loss of each pass.
        updates: How many steps changed the weights.
    """

    deltas: tuple[Tensor, ...]
    losses: tuple[float, ...]
    updates: int


@attrs.define(eq=False, kw_only=True)
class _Weight:
    """One trained weight.

    Attributes:
        start: W₀, ``(d_out, d_in)`` float32.
        live: W, a leaf.
        low: Smallest values allowed, or None.
        high: Largest values allowed, or None.
        most: Largest change allowed of any number, a float32, or None.
    """

    start: Tensor
    live: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    most: float | None = None

    def project(self) -> None:
        if self.low is not None and self.high is not None:
            self.live.clamp_(self.low, self.high)

    def change(self) -> Tensor:
        """Return W - W₀ on the CPU, within the bound although W₀ and the bound were added."""
        change = (self.live - self.start).detach().cpu()
        return change if self.most is None else change.clamp(-self.most, self.most)


def train(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    params: FtParams,
    context: EditContext,
) -> Trained:
    """Train the weights of ``sites`` on the requests.

    Raises:
        NonFiniteEditError: A loss became NaN or infinite.
    """
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as shown:
        weights = [_weight(model, site, params) for site in sites]
        for site, weight in zip(sites, weights, strict=True):
            _show(model, site, weight, shown)
        return _train(model, requests, sites, weights, params, context)


def _train(
    model: EditableModel,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    weights: Sequence[_Weight],
    params: FtParams,
    context: EditContext,
) -> Trained:
    steps = [
        make_step(model, pair_batch(model, [(r.text, r.target_new) for r in part], end=True), sites)
        for part in _parts(requests, params.batch_size)
    ]
    leaves = [weight.live for weight in weights]
    adam = torch.optim.Adam(leaves, lr=params.lr, weight_decay=params.weight_decay)
    losses: list[float] = []
    updates = 0
    context.progress.start("fine-tuning", params.steps)
    try:
        for _ in range(params.steps):
            total = 0.0
            for step in steps:
                loss = batch_loss(step.logits(), step.batch, params)
                value = float(loss.detach())
                _require_finite(value, len(losses))
                total += value * len(step.batch.rows)
                if value >= params.loss_skip:
                    grads = torch.autograd.grad(loss, leaves)
                    for leaf, grad in zip(leaves, grads, strict=True):
                        leaf.grad = grad
                    adam.step()
                    updates += 1
                with torch.no_grad():
                    for weight in weights:
                        weight.project()
            losses.append(total / len(requests))
            context.progress.advance(note=f"loss {losses[-1]:.2f}")
            if losses[-1] < params.loss_stop:
                break
    finally:
        context.progress.finish()
    return Trained(
        deltas=tuple(weight.change() for weight in weights),
        losses=tuple(losses),
        updates=updates,
    )


def batch_loss(logits: Tensor, batch: PairBatch, params: FtParams) -> Tensor:
    """Return the mean loss over the rows of a batch, each row's the mean over its target's tokens.

    Args:
        logits: Of the positions that have a label, ``(rows, len, vocab)``.
        batch: The rows and their labels, ``(rows, len)``.
        params: Names the objective.
    """
    counts = batch.labels != IGNORED  # (rows, len)
    if params.objective == "prompt_last":
        first = counts.int().argmax(dim=1)  # where each target's first token is predicted
        there = logits[torch.arange(len(logits), device=logits.device), first]  # (rows, vocab)
        logits = there[:, None].expand(-1, counts.shape[1], -1)
    each = cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).reshape(counts.shape)
    rows = (each * counts).sum(dim=1) / counts.sum(dim=1)
    mean: Tensor = rows.mean()
    return mean


def _weight(model: EditableModel, site: Site, params: FtParams) -> _Weight:
    start = model.weight(site).detach().to(model.device, torch.float32).clone()
    weight = _Weight(start=start, live=start.clone().requires_grad_())
    if params.linf is not None:
        centre = start - _drift(model, site) if params.anchor == "base" else start
        weight.low, weight.high = centre - params.linf, centre + params.linf
        if params.anchor == "previous":
            weight.most = _not_above(params.linf)
    return weight


def _not_above(bound: float) -> float:
    """Return the largest float32 number that is not above a bound."""
    nearest = torch.tensor(bound, dtype=torch.float32)
    if float(nearest) > bound:
        nearest = torch.nextafter(nearest, torch.zeros_like(nearest))
    return float(nearest)


def _drift(model: EditableModel, site: Site) -> Tensor:
    """Return how far the weight is from the base's, by patches merged and beside it."""
    total = torch.zeros(model.weight(site).shape, dtype=torch.float64)
    for active in model.ledger.effective:
        for entry in active.patch.weight_entries:
            if entry.site.parameter == site.parameter:
                total += active.scale * entry.delta()
    return total.to(model.device, torch.float32)


def _show(model: EditableModel, site: Site, weight: _Weight, shown: ExitStack) -> None:
    def add(_: object, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        change = args[0].float() @ (weight.live - weight.start).T  # (..., d_in) -> (..., d_out)
        return output + change.to(output.dtype)

    handle = model.module(site.module).register_forward_hook(add)
    shown.callback(handle.remove)


def _parts(requests: Sequence[EditRequest], size: int) -> list[Sequence[EditRequest]]:
    return [requests[first : first + size] for first in range(0, len(requests), size)]


def _require_finite(loss: float, epoch: int) -> None:
    if not loss < float("inf"):
        raise NonFiniteEditError(
            f"The loss became {loss} in pass {epoch + 1}. Load the model in float32, or lower the "
            "learning rate lr.",
            loss=loss,
        )
