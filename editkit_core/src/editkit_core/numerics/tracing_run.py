"""A corrupted run of one prompt, with chosen states put back: the primitive of causal tracing.

Each forward pass holds the clean prompt in row 0 and ``samples`` noisy copies of it for every cell.
Noise is added to the subject's embeddings of the noisy rows; a cell's rows then get the clean
row's state at the cell's modules and tokens. Everything happens in one batch, so a restored state
is, bit for bit, what the clean row computed beside it.

Legend: ``rows = 1 + n_cells * samples``; ``len`` tokens in the prompt; ``n_subject`` tokens in the
subject; ``d`` width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import attrs
import torch
from torch import Tensor, nn

from editkit_core.errors import NonFiniteEditError
from editkit_core.models.editable import EditableModel
from editkit_core.models.text import Batch, pad_batch
from editkit_core.models.trace import record, replace_output


@attrs.frozen
class Cell:
    """States restored together: the outputs of ``modules`` at ``tokens``; none of them by default.

    Attributes:
        modules: Dotted module names.
        tokens: Token indices in the prompt.
    """

    modules: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()


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

    def batch(self, n_cells: int) -> Batch:
        """Return the padless batch of one clean row and ``n_cells * samples`` rows to disturb."""
        rows = [self.ids] * (1 + n_cells * self.samples)
        return pad_batch(rows, self.model.pad_id, device=self.model.device)

    def logits(self, cells: Sequence[Cell]) -> Tensor:
        """Return next-token logits ``(rows, vocab)`` float32: the clean row, then cell by cell."""
        with ExitStack() as hooks:
            for module, hook in self._hooks(cells):
                hooks.enter_context(replace_output(self.model.model, module, hook))
            return next_token_logits(self.model, self.batch(len(cells)))

    def probabilities(self, cells: Sequence[Cell]) -> tuple[float, Tensor]:
        """Return p(answer) of the clean row, and of each cell and sample.

        Args:
            cells: What to restore; ``Cell()`` restores nothing.

        Returns:
            The clean probability, and ``(n_cells, samples)`` float64 on the CPU.

        Raises:
            NonFiniteEditError: The model's logits are not finite.
        """
        logits = self.logits(cells).double()
        p = torch.softmax(logits, dim=-1)[:, self.answer_id].cpu()  # (rows,)
        if not bool(torch.isfinite(p).all()):
            raise NonFiniteEditError(
                f"The logits of {self.model.name} are not finite on the traced prompt. Load the "
                "model in float32, or lower the noise.",
                model=self.model.name,
            )
        return float(p[0]), p[1:].reshape(len(cells), self.samples)

    def _hooks(self, cells: Sequence[Cell]) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        embedding = self.model.family.embedding
        places: dict[str, list[tuple[int, int]]] = {embedding: []}
        for number, cell in enumerate(cells):
            first = 1 + number * self.samples
            spots = [(r, t) for r in range(first, first + self.samples) for t in cell.tokens]
            for module in cell.modules:
                places.setdefault(module, []).extend(spots)
        for module, spots in places.items():
            noise = self.noise.repeat(len(cells), 1, 1) if module == embedding else None
            yield module, self._hook(spots, noise)

    def _hook(
        self, spots: list[tuple[int, int]], noise: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        start, end = self.subject
        index = torch.tensor(spots, dtype=torch.long).reshape(-1, 2)

        def disturb_then_restore(state: Tensor) -> Tensor:  # (rows, len, d)
            changed = state.clone()
            if noise is not None:
                # Type promotion forms the sum in float32 or wider; only the result is rounded.
                noisy = state[1:, start:end] + noise.to(state.device)
                changed[1:, start:end] = noisy.to(state.dtype)
            rows, tokens = index.to(state.device).unbind(dim=1)
            changed[rows, tokens] = state[0, tokens]
            return changed

        return disturb_then_restore


def next_token_logits(model: EditableModel, batch: Batch) -> Tensor:
    """Return the logits after the last position, ``(rows, vocab)`` float32.

    Only that position goes through the head: with a large vocabulary the logits of all positions
    would take more memory than everything else.
    """

    def last_position(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args  # (rows, len, d)
        return (hidden[:, -1:], *rest)

    handle = model.module(model.family.head).register_forward_pre_hook(last_position)
    try:
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
