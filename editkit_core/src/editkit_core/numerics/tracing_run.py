"""A corrupted run of one prompt, with chosen states put back: the primitive of causal tracing.

Noise is added to the subject's embeddings, which gives ``samples`` noisy rows beside the clean one;
they are run once. A cell is ``samples`` rows that go on from there with the clean row's state at
the cell's modules and tokens (see :mod:`.tracing_states`).

Legend: ``rows = n_cells * samples``; ``n_subject`` tokens in the subject; ``d`` width of the
residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import attrs
import torch
from torch import Tensor, nn

from editkit_core.errors import NonFiniteEditError
from editkit_core.models.editable import EditableModel
from editkit_core.models.text import Batch, pad_batch
from editkit_core.models.trace import record
from editkit_core.numerics.tracing_states import Cell, TraceStates
from editkit_core.numerics.upper import unasked

__all__ = ["Cell", "CorruptedRun", "draw_noise", "embedding_entries", "next_token_logits"]


@attrs.frozen(kw_only=True, eq=False)
class CorruptedRun:
    """A prompt whose subject embeddings are disturbed by fixed noise.

    Attributes:
        model: The model; it is only read.
        ids: Token ids of the prompt, unpadded.
        subject: Half-open token span that the noise is added to.
        noise: ``(samples, n_subject, d)``, float32, on the CPU.
        scale: Standard deviation the noise was drawn with.
        answer_id: The next token whose probability is read.
    """

    model: EditableModel
    ids: tuple[int, ...]
    subject: tuple[int, int]
    noise: Tensor
    scale: float
    answer_id: int

    @property
    def samples(self) -> int:
        """The number of noise samples, which is also the number of rows of a cell."""
        return int(self.noise.shape[0])

    @cached_property
    def states(self) -> TraceStates:
        """What the clean and the noisy rows compute; it is computed at the first look."""
        return TraceStates.read(self.model, self.ids, self.subject, self.noise)

    def probabilities(self, cells: Sequence[Cell]) -> tuple[float, Tensor]:
        """Return p(answer) of the clean row, and of each cell and sample.

        Args:
            cells: What to restore; ``Cell()`` restores nothing.

        Returns:
            The clean probability, and ``(n_cells, samples)`` float64 on the CPU.

        Raises:
            NonFiniteEditError: The model's logits are not finite.
        """
        clean = self._answer(self.states.logits[:1])
        restored = self._answer(self.states.restored(cells))
        return float(clean[0]), restored.reshape(len(cells), self.samples)

    def baseline(self) -> tuple[float, float]:
        """Return p(answer) of the clean row, and its mean over the noisy rows.

        Raises:
            NonFiniteEditError: The model's logits are not finite.
        """
        p = self._answer(self.states.logits)
        return float(p[0]), float(p[1:].mean())

    def _answer(self, logits: Tensor) -> Tensor:
        p = torch.softmax(logits.double(), dim=-1)[:, self.answer_id].cpu()  # (rows,)
        if not bool(torch.isfinite(p).all()):
            raise NonFiniteEditError(
                f"The logits of {self.model.name} are not finite on the traced prompt. Load the "
                "model in float32, or lower the noise.",
                model=self.model.name,
            )
        return p


def next_token_logits(model: EditableModel, batch: Batch) -> Tensor:
    """Return the logits after the last position, ``(rows, vocab)`` float32.

    Codebooks on the model take no part. Only that position goes through the head: with a large
    vocabulary the logits of all positions would take more memory than everything else.
    """

    def last_position(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args  # (rows, len, d)
        return (hidden[:, -1:], *rest)

    handle = model.module(model.family.head).register_forward_pre_hook(last_position)
    try:
        with unasked(model, len(batch.input_ids)):
            return model.logits(batch)[:, -1]
    finally:
        handle.remove()


def draw_noise(shape: tuple[int, int, int], *, scale: float, seed: int) -> Tensor:
    """Return Gaussian noise ``(samples, n_subject, d)`` float32, the same for every device.

    The generator is its own: the global random state is neither read nor moved.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return scale * torch.randn(shape, generator=generator)


def embedding_entries(model: EditableModel, ids: Sequence[int], span: tuple[int, int]) -> Tensor:
    """Return what the embedding gives for ``ids[start:end]``, ``(n_subject, d)`` float64, CPU."""
    name = model.family.embedding
    batch = pad_batch([tuple(ids)], model.pad_id, device=model.device)
    with torch.no_grad(), record(model.model, [name], stop=True) as states:
        model.logits(batch)
    start, end = span
    return states[name][0, start:end].double().cpu()
