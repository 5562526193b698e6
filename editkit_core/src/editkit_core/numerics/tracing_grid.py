"""The grid of causal tracing: one cell for each token and layer, several cells a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from editkit_core.models.editable import EditableModel
from editkit_core.numerics.tracing_result import FloatArray, TraceKind
from editkit_core.numerics.tracing_run import Cell, CorruptedRun
from editkit_core.types import Progress

# A block's weights are read once a pass, which takes about as long as this many tokens' sums.
PASS_TOKENS = 32


def window_width(n_layers: int, window: int, share: float) -> int:
    """Return how many layers are restored together: ``min(window, max(1, round(L * share)))``.

    With the paper's 10 and a fifth of the depth: 10 of 48 layers, 6 of 32, 2 of 12, 1 of 6.
    """
    return min(window, max(1, round(n_layers * share)))


def window_layers(layer: int, width: int, n_layers: int) -> range:
    """Return the layers ``[l - w // 2, l + ceil(w / 2))`` that exist; width 10: ``[l-5, l+5)``."""
    return range(max(0, layer - width // 2), min(n_layers, layer + (width + 1) // 2))


def cell_of(model: EditableModel, kind: TraceKind, token: int, layer: int, width: int) -> Cell:
    """Return what is restored for one token and layer; ``hidden`` ignores ``width``."""
    if kind == "hidden":
        return Cell((model.family.block(layer),), (token,))
    name = model.family.mlp if kind == "mlp" else model.family.attention
    layers = window_layers(layer, width, model.n_layers)
    return Cell(tuple(name(near) for near in layers), (token,))


def restored_probabilities(
    run: CorruptedRun,
    kind: TraceKind,
    tokens: Sequence[int],
    *,
    width: int,
    batch_cells: int,
    progress: Progress,
) -> FloatArray:
    """Return mean p(answer) with each (token, layer) restored, ``(len(tokens), n_layers)`` float64.

    Args:
        run: The corrupted run.
        kind: What is restored.
        tokens: Token indices in the prompt.
        width: Layers restored together, see :func:`window_width`.
        batch_cells: Most cells in one forward pass.
        progress: Advanced by the cells of each pass.
    """
    layers = range(run.model.n_layers)
    cells = [cell_of(run.model, kind, token, layer, width) for token in tokens for layer in layers]
    means: FloatArray = np.zeros(len(cells))
    costs = [
        Cost(len(layers) - 1 - run.states.start(cell), len(run.ids) - run.states.first(cell))
        for cell in cells
    ]
    for part in passes(costs, run.samples, batch_cells):
        found = run.probabilities([cells[number] for number in part])[1]  # (n_cells, samples)
        means[part] = found.mean(dim=1).numpy()
        progress.advance(len(part), kind)
    return means.reshape(len(tokens), len(layers))


@attrs.frozen
class Cost:
    """What a cell makes a pass run: blocks, and tokens of each row."""

    blocks: int
    tokens: int


def passes(costs: Sequence[Cost], samples: int, most: int) -> list[list[int]]:
    """Return the numbers of the cells that share each pass.

    A pass runs the most blocks and tokens that one of its cells needs, for all of them. Cells that
    need much the same go together, as long as what is run in vain costs less than another pass.

    Args:
        costs: What each cell needs.
        samples: Rows of a cell.
        most: Most cells in a pass.
    """
    order = sorted(range(len(costs)), key=lambda i: (-costs[i].blocks, -costs[i].tokens))
    parts: list[list[int]] = []
    for number in order:
        cost = costs[number]
        if parts and len(parts[-1]) < most:
            together = [costs[i] for i in parts[-1]] + [cost]
            if samples * _in_vain(together) <= PASS_TOKENS * (1 + cost.blocks):
                parts[-1].append(number)
                continue
        parts.append([number])
    return parts


def _in_vain(costs: Sequence[Cost]) -> int:
    """Return how many tokens are run through a block that no cell needs, a row of each."""
    run = max(cost.blocks for cost in costs) * max(cost.tokens for cost in costs)
    return sum(run - cost.blocks * cost.tokens for cost in costs)
