"""The size of the residual stream that values are measured by: that of the base.

Learning rates and bounds that are relative to the stream must not follow what earlier edits did to
it: each edit would enlarge what the next one may do, and a sequence of them would grow without end.
So where patches changed weights, the stream is read as it is without them.

Source: ours.

Legend: owners: requests; contexts: texts of an owner that end in its prompt and target.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import attrs
import torch

from editkit_core.numerics.states import states_at
from editkit_core.patch.overlay import Overlay
from editkit_core.types import Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.numerics.value_loss import Clean
    from editkit_core.numerics.value_rows import ValueRows
    from editkit_core.patch.kinds import WeightEntry

__all__ = ["anchored", "without_weight_patches"]


def anchored(clean: Clean, model: EditableModel, site: Site, rows: ValueRows) -> Clean:
    """Return what the model gives with the stream's norm ``(owners,)`` taken from the base."""
    if not any(active.patch.weight_entries for active in model.ledger.effective):
        return clean
    places = [(rows.ids[row], rows.edited[row]) for row in rows.contexts.tolist()]
    with without_weight_patches(model):
        states = states_at(model, model.family.block(site.layer), places)  # (contexts, d)
    norms = states.norm(dim=1).to(clean.stream_norm)
    return attrs.evolve(clean, stream_norm=rows.mean(norms))


@contextmanager
def without_weight_patches(model: EditableModel) -> Iterator[None]:
    """Let a model behave as if no patch had changed a weight; nothing is written.

    Their changes are taken back beside the modules, so up to rounding.
    """
    changes: dict[str, list[tuple[WeightEntry, float]]] = defaultdict(list)
    for active in model.ledger.effective:
        for entry in active.patch.weight_entries:
            changes[entry.site.module].append((entry, -active.scale))
    with ExitStack() as shown, torch.no_grad():
        for module, entries in changes.items():
            shown.callback(Overlay(model.module(module), entries).remove)
        yield
