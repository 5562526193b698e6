"""The grid of causal tracing: one cell for each token and layer, several cells a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from editkit_core.models.editable import EditableModel
from editkit_core.numerics.tracing_result import FloatArray, TraceKind
from editkit_core.numerics.tracing_run import Cell, CorruptedRun
from editkit_core.types import Progress


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


def baseline(run: CorruptedRun) -> tuple[float, float]:
    """Return p(answer) of the clean row, and its mean over the noisy rows with nothing restored."""
    clean, noisy = run.probabilities([Cell()])
    return clean, float(noisy.mean())


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
        batch_cells: Cells in one forward pass.
        progress: Advanced by the cells of each pass.
    """
    layers = range(run.model.n_layers)
    cells = [cell_of(run.model, kind, token, layer, width) for token in tokens for layer in layers]
    means = []
    for first in range(0, len(cells), batch_cells):
        part = cells[first : first + batch_cells]
        means.append(run.probabilities(part)[1].mean(dim=1))
        progress.advance(len(part), kind)
    table: FloatArray = torch.cat(means).reshape(len(tokens), len(layers)).numpy()
    return table
