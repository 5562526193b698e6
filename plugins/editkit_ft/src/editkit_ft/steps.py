"""What a training step runs of the model.

A decoder's blocks below the first trained one give the same in every step. They are run once, and a
step runs the others, and the vocabulary's matrix only where a target is predicted. With an encoder,
or with a codebook on the model, which looks at whole prompts, a step runs everything.

Legend: rows: requests of a step; len: tokens; n: columns where a target is predicted in any row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor

from editkit_core import EditableModel, Site
from editkit_core.models.pairs import IGNORED, PairBatch, pair_logits
from editkit_core.models.text import pad_batch
from editkit_core.models.trace import record
from editkit_core.numerics.upper import Upper


@attrs.frozen(eq=False)
class Step:
    """The requests of one step.

    Attributes:
        batch: Their rows, with the labels of the columns that are computed.
        logits: Computes the logits of these columns, (rows, n, vocab), float32; gradients flow.
    """

    batch: PairBatch
    logits: Callable[[], Tensor]


def make_step(model: EditableModel, batch: PairBatch, sites: Sequence[Site]) -> Step:
    """Prepare a step that trains the weights of ``sites``; they must be as they are when it starts.

    Args:
        model: The model; it is only read.
        batch: What the step reads.
        sites: The trained weights.
    """
    gated = any(active.patch.module_entries for active in model.ledger.effective)
    if model.is_encoder_decoder or gated:
        return Step(batch, lambda: pair_logits(model, batch))
    below = min(site.layer for site in sites) - 1
    given = pad_batch([row.ids for row in batch.rows], model.pad_id, device=model.device)
    upper = Upper.above(model, below, given, ())
    hidden = _output(model, batch, below) if below >= 0 else None  # (rows, len, d)
    columns = (batch.labels != IGNORED).any(dim=0).nonzero()[:, 0]  # (n,)
    head = model.module(model.family.head)

    def logits() -> Tensor:
        states = upper.states(hidden)[:, columns]  # (rows, n, d)
        found: Tensor = head(states).float()  # (rows, n, d) -> (rows, n, vocab)
        return found

    return Step(attrs.evolve(batch, labels=batch.labels[:, columns]), logits)


def _output(model: EditableModel, batch: PairBatch, layer: int) -> Tensor:
    """Return what a block gives, (rows, len, d); the blocks above it are not run."""
    block = model.family.block(layer)
    with torch.no_grad(), record(model.model, [block], stop=True) as states:
        pair_logits(model, batch)
    return states[block]
