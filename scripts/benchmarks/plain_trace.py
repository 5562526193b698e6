"""Causal tracing as a plain script does it: every cell in passes of the whole model on whole rows.

Row 0 is the clean prompt, the rows after it are its noisy copies; a cell's rows get the clean row's
state at its modules and token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from editkit_core.models.editable import EditableModel
from editkit_core.models.text import pad_batch
from editkit_core.models.trace import replace_output

Spot = tuple[tuple[str, ...], int]  # modules and the token at which they are restored


def plain_effects(
    model: EditableModel,
    ids: tuple[int, ...],
    subject: tuple[int, int],
    noise: Tensor,
    answer_id: int,
    spots: Sequence[Spot],
    *,
    cells: int = 1,
) -> Tensor:
    """Return mean p(answer) with each spot restored, ``(spots,)`` float64.

    Args:
        model: The model.
        ids: The prompt.
        subject: Half-open span of the disturbed tokens.
        noise: ``(samples, n_subject, d)``.
        answer_id: The token whose probability is read.
        spots: What is restored.
        cells: Spots in one pass.
    """
    parts = [spots[first : first + cells] for first in range(0, len(spots), cells)]
    with torch.no_grad():
        found = [_pass(model, ids, subject, noise, part) for part in parts]
    p = torch.cat([torch.softmax(logits.double(), dim=-1)[:, answer_id] for logits in found])
    return p.reshape(len(spots), len(noise)).mean(dim=1)


def _pass(
    model: EditableModel,
    ids: tuple[int, ...],
    subject: tuple[int, int],
    noise: Tensor,
    spots: Sequence[Spot],
) -> Tensor:
    samples = len(noise)
    batch = pad_batch([ids] * (1 + len(spots) * samples), model.pad_id)

    def disturb(output: Tensor) -> Tensor:
        changed = output.clone()
        changed[1:, slice(*subject)] += noise.repeat(len(spots), 1, 1)
        return changed

    with ExitStack() as hooks:
        hooks.enter_context(replace_output(model.model, model.family.embedding, disturb))
        for module, rows, token in _restored(spots, samples):

            def restore(output: Tensor, rows: slice = rows, token: int = token) -> Tensor:
                changed = output.clone()
                changed[rows, token] = output[0, token]
                return changed

            hooks.enter_context(replace_output(model.model, module, restore))
        return model.model(**batch.inputs(), use_cache=False).logits[1:, -1]


def _restored(spots: Sequence[Spot], samples: int) -> Iterator[tuple[str, slice, int]]:
    for number, (modules, token) in enumerate(spots):
        rows = slice(1 + number * samples, 1 + (number + 1) * samples)
        for module in modules:
            yield module, rows, token
