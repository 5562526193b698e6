"""Run the rows of a target value in portions, so that memory does not grow with their length.

What autograd keeps of a row is the activations of the blocks above the edited layer at each of its
tokens, and logits at each place that is read. With long targets or many requests at once that is
more than the model itself. Rows do not influence each other, so they are run a portion at a time:
the sums over rows add up, and so do their gradients. All rows that fit are one portion.

Legend: rows: texts; after: columns that are run; d, d_in: width of hidden states and of the
feed-forward; vocab: logits a place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from editkit_core.numerics.value_loss import Losses, Objective, Terms

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["Portion", "most_bytes", "portions", "pulled", "run_bytes", "total"]

Portion: TypeAlias = tuple[slice, Objective]

# Of a block, by its widths: what autograd keeps of the attention and norms, and of the feed-forward
# (a GELU of elementary operations keeps five tensors).
_KEPT_OF_STREAM = 14
_KEPT_OF_FFN = 6
_KEPT_OF_LOGITS = 3
_LEAST_BYTES = 225_000_000
_SHARE_OF_MODEL = 0.45


def most_bytes(model: EditableModel) -> int:
    """Return what running rows may take at once: 45 % of the model's own size, or 225 MB."""
    size = sum(parameter.nbytes for parameter in model.model.parameters())
    return max(_LEAST_BYTES, int(_SHARE_OF_MODEL * size))


def run_bytes(model: EditableModel, layer: int, d_in: int, *, columns: int, places: int) -> int:
    """Return, estimated from above, the bytes that autograd keeps of some rows.

    Args:
        model: The model.
        layer: The last block that is not run.
        d_in: Inputs of a block's feed-forward projection.
        columns: Tokens of all rows.
        places: Places at which logits are read.
    """
    block = _KEPT_OF_STREAM * model.d_model + _KEPT_OF_FFN * d_in
    above = model.n_layers - 1 - layer
    return 4 * (columns * (above * block + model.d_model) + places * model.vocab * _KEPT_OF_LOGITS)


def portions(objective: Objective, most: int) -> list[Portion]:
    """Cut the rows of an objective so that each portion takes at most ``most`` bytes.

    A row is never cut. The portions are about equally long.
    """
    rows, upper = objective.rows, objective.upper
    count, columns = upper.batch.input_ids.shape
    d_in = upper.model.weight(objective.site).shape[1]
    places = torch.cat([places.row for places in rows.groups])
    read = torch.bincount(places, minlength=count).tolist()

    def size(first: int, last: int) -> int:
        return run_bytes(
            upper.model,
            upper.layer,
            d_in,
            columns=(last - first) * columns,
            places=sum(read[first:last]),
        )

    each = count
    while each > 1 and any(size(at.start, at.stop) > most for at in _slices(count, each)):
        more = -(-count // each) + 1
        each = min(each - 1, -(-count // more))
    if each >= count:
        return [(slice(0, count), objective)]
    return [(at, objective.portion(at.start, at.stop)) for at in _slices(count, each)]


def _slices(count: int, each: int) -> list[slice]:
    return [slice(first, min(first + each, count)) for first in range(0, count, each)]


def pulled(
    objective: Objective,
    parts: Sequence[Portion],
    deltas: Tensor,
    through: Sequence[Tensor],
    states: Callable[[slice, Objective], Tensor],
) -> tuple[Losses, Callable[[], tuple[Tensor, ...]]]:
    """Return L of every owner, and what gives the gradient of their sum.

    With one portion the gradient is computed when it is asked for; with several it comes with the
    losses, and nothing of a portion is held when the next one is run.

    Args:
        objective: L of all rows.
        parts: Its portions.
        deltas: The vectors, ``(owners, parts, d)``; they decay.
        through: Leaves that ``deltas`` and ``states`` are made of.
        states: Gives what feeds the head, from a portion's slice of the rows and its objective.
    """
    if len(parts) == 1:
        now = objective.losses(objective.terms(states(*parts[0])), deltas)
        return now, lambda: torch.autograd.grad(now.loss.sum(), through)
    damping = torch.ones(len(deltas), device=deltas.device)
    if objective.settings.said_damping != 1.0:  # counts by what all rows say
        with torch.no_grad():
            wrong = total([part.terms(states(at, part)) for at, part in parts]).wrong
        damping = torch.where(wrong == 0, objective.settings.said_damping, damping)
    found, grads = [], [torch.zeros_like(leaf) for leaf in through]
    for at, part in parts:
        terms = part.terms(states(at, part))
        _add(grads, _weighed(terms, damping, objective), through)
        found.append(terms.detach())
    losses = objective.losses(total(found), deltas)
    _add(grads, losses.loss.sum(), through)  # the decay
    return losses, lambda: tuple(grads)


def _weighed(terms: Terms, damping: Tensor, objective: Objective) -> Tensor:
    """Return a portion's part of the sum of all losses, without the decay."""
    settings = objective.settings
    factors = (settings.kl_factor, settings.essence_factor, settings.ending_factor)
    kl = [factor * term for factor, term in zip(factors, terms.kl, strict=True)]
    return (terms.nll * damping + sum(kl)).sum()


def total(found: Sequence[Terms]) -> Terms:
    """Add up what portions give."""
    whole = found[0]
    for terms in found[1:]:
        whole = whole + terms
    return whole


def _add(grads: list[Tensor], value: Tensor, through: Sequence[Tensor]) -> None:
    """Add the gradients of ``value``, where it depends on a leaf."""
    for grad, more in zip(
        grads, torch.autograd.grad(value, through, allow_unused=True), strict=True
    ):
        if more is not None:
            grad += more
