"""What a corrupted run computes wherever nothing is restored yet: computed once, and started from.

Restoring a state changes nothing below its layer and nothing before its token. So the noisy rows
are run once and their states and attention keys and values kept; a cell's rows then start at its
token and above its layer, from what is kept. Cells of several tokens and layers share a pass, which
starts at the lowest of their layers; each reads its own tokens before.

Codebooks on the model take no part: what is traced is what the weights say.

Legend: ``S`` noise samples; ``n`` tokens in the prompt; ``rows = n_cells * S``; ``after`` columns
from a cell's token on, the most of all cells; ``before`` the most tokens that stand before one;
``d`` width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import attrs
import torch
from torch import Tensor
from transformers import DynamicCache

from editkit_core.models.editable import EditableModel
from editkit_core.models.text import Batch, pad_batch
from editkit_core.models.trace import record, replace_output
from editkit_core.numerics.upper import LayerCache, Upper, unasked

__all__ = ["Cell", "TraceStates"]


@attrs.frozen
class Cell:
    """States restored together: the outputs of ``modules`` at ``tokens``; none of them by default.

    Attributes:
        modules: Dotted module names: the embedding, blocks, their attention or MLP.
        tokens: Token indices in the prompt.
    """

    modules: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()


@attrs.frozen(kw_only=True, eq=False)
class TraceStates:
    """The clean row and the noisy rows of a prompt, with nothing restored.

    Attributes:
        model: The model; it is only read.
        ids: Token ids of the prompt, unpadded.
        clean: Outputs of the clean row, ``(n, d)``, by module.
        noisy: Outputs of the noisy rows, ``(S, n, d)``: the embedding's, then each block's.
        cached: For each block the noisy rows' attention keys and values, ``(S, heads, n, width)``.
        logits: After the last token, the clean row before the noisy ones, ``(1 + S, vocab)``
            float32.
    """

    model: EditableModel
    ids: tuple[int, ...]
    clean: Mapping[str, Tensor]
    noisy: tuple[Tensor, ...]
    cached: tuple[LayerCache, ...]
    logits: Tensor

    @classmethod
    @torch.no_grad()
    def read(
        cls, model: EditableModel, ids: tuple[int, ...], subject: tuple[int, int], noise: Tensor
    ) -> TraceStates:
        """Run the clean row and the noisy rows in one batch.

        Args:
            model: The model.
            ids: Token ids of the prompt.
            subject: Half-open token span that the noise is added to.
            noise: ``(S, n_subject, d)`` float32.
        """
        family, layers = model.family, range(model.n_layers)
        streams = [family.embedding, *map(family.block, layers)]
        parts = [name(layer) for name in (family.mlp, family.attention) for layer in layers]
        batch = pad_batch([ids] * (1 + len(noise)), model.pad_id, device=model.device)
        cache = DynamicCache()

        def disturb(state: Tensor) -> Tensor:  # (1 + S, n, d)
            changed = state.clone()
            # Type promotion forms the sum in float32 or wider; only the result is rounded.
            noisy = state[1:, slice(*subject)] + noise.to(state.device)
            changed[1:, slice(*subject)] = noisy.to(state.dtype)
            return changed

        with (
            unasked(model, len(batch.input_ids)),
            replace_output(model.model, family.embedding, disturb),
            record(model.model, [*streams, *parts]) as seen,
        ):
            body = model.module(family.body)
            out = body(**batch.inputs(), past_key_values=cache, use_cache=True)
        head = model.module(family.head)
        return cls(
            model=model,
            ids=ids,
            clean={name: output[0].clone() for name, output in seen.items()},
            noisy=tuple(seen[name][1:] for name in streams),
            cached=tuple((layer.keys[1:], layer.values[1:]) for layer in cache.layers),
            logits=head(out.last_hidden_state[:, -1:])[:, 0].float(),  # (1 + S, vocab)
        )

    @property
    def samples(self) -> int:
        """The number of noise samples, which is also the number of rows of a cell."""
        return len(self.noisy[0])

    def start(self, cell: Cell) -> int:
        """Return the last block that a cell need not run; -1 when it runs all of them."""
        return min((self._level(name) for name in cell.modules), default=self.model.n_layers - 1)

    def first(self, cell: Cell) -> int:
        """Return the first token that a cell must run."""
        return min(cell.tokens, default=len(self.ids) - 1)

    @torch.no_grad()
    def restored(self, cells: Sequence[Cell]) -> Tensor:
        """Run the rows of cells in one pass.

        Returns:
            Next-token logits, cell by cell, ``(rows, vocab)`` float32.
        """
        start = min(self.start(cell) for cell in cells)
        rows = _Rows.of([self.first(cell) for cell in cells], self.samples, len(self.ids))
        upper = Upper.above(self.model, start, self._batch(rows), self._before(rows, start))
        hidden = self.noisy[start + 1]
        sample, at = rows.sample.to(hidden.device), rows.at.to(hidden.device)
        entering = hidden[sample[:, None], at]  # (rows, after, d)
        with ExitStack() as hooks:
            for name, restore in self._restoring(cells, rows):
                if name == self._stream(start):
                    entering = restore(entering)
                else:
                    hooks.enter_context(replace_output(self.model.model, name, restore))
            if start < 0:
                embedding = self.model.family.embedding
                hooks.enter_context(replace_output(self.model.model, embedding, lambda _: entering))
            states = upper.states(None if start < 0 else entering)  # (rows, after, d)
        last = rows.last.to(states.device)
        logits: Tensor = self.model.module(self.model.family.head)(
            states[torch.arange(len(states), device=states.device), last]
        )
        return logits.float()

    def _level(self, module: str) -> int:
        """Return the last block whose output does not depend on a module, or is the module's."""
        family, n_layers = self.model.family, self.model.n_layers
        for layer in range(-1, n_layers):
            if module == self._stream(layer):
                return layer
            if layer >= 0 and module in (family.mlp(layer), family.attention(layer)):
                return layer - 1
        raise AssertionError(f"{module} is no module that can be restored")

    def _stream(self, layer: int) -> str:
        return self.model.family.embedding if layer < 0 else self.model.family.block(layer)

    def _batch(self, rows: _Rows) -> Batch:
        ids = torch.tensor(self.ids)[rows.at].masked_fill(~rows.real, self.model.pad_id)
        device = self.model.device
        return Batch(
            input_ids=ids.to(device),
            attention_mask=torch.cat([rows.behind, rows.real], dim=1).long().to(device),
            position_ids=(rows.at * rows.real).to(device),
            pad=(0,) * len(ids),
        )

    def _before(self, rows: _Rows, start: int) -> list[LayerCache]:
        """Return each block's keys and values of the tokens before, ending in the last column."""
        if rows.back.shape[1] == 0:
            return []
        chosen: list[LayerCache] = []
        for layer, (keys, values) in enumerate(self.cached):
            if layer <= start:
                # Nothing reads them, but their shape is looked at.
                zero = keys.new_zeros(1).expand(len(rows.back), 1, rows.back.shape[1], 1)
                chosen.append((zero, zero))
            else:
                chosen.append((rows.before(keys), rows.before(values)))
        return chosen

    def _restoring(
        self, cells: Sequence[Cell], rows: _Rows
    ) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Yield for each module what puts the clean states into its output."""
        places: dict[str, list[tuple[int, int, int]]] = {}
        for number, cell in enumerate(cells):
            first = self.first(cell)
            spots = [
                (number * self.samples + sample, token - first, token)
                for sample in range(self.samples)
                for token in cell.tokens
            ]
            for module in cell.modules:
                places.setdefault(module, []).extend(spots)
        for module, spots in places.items():
            yield module, self._restore(module, torch.tensor(spots, dtype=torch.long))

    def _restore(self, module: str, spots: Tensor) -> Callable[[Tensor], Tensor]:
        clean = self.clean[module]  # (n, d)

        def restore(state: Tensor) -> Tensor:  # (rows, after, d)
            row, column, token = spots.to(state.device).unbind(dim=1)
            changed = state.clone()
            changed[row, column] = clean.to(state.device)[token]
            return changed

        return restore


@attrs.frozen(eq=False)
class _Rows:
    """Which tokens the rows of a pass hold; indices are on the CPU.

    Attributes:
        sample: The noisy row that each row goes on from, ``(rows,)`` int64.
        at: The token in each column from the row's first one on, ``(rows, after)`` int64.
        real: Which of them exist, bool.
        back: The token in each column before that, ``(rows, before)`` int64.
        behind: Which of them exist, bool.
        last: Column of the prompt's last token, ``(rows,)`` int64.
    """

    sample: Tensor
    at: Tensor
    real: Tensor
    back: Tensor
    behind: Tensor
    last: Tensor

    @classmethod
    def of(cls, firsts: Sequence[int], samples: int, n: int) -> _Rows:
        """Return the rows of cells whose first tokens are ``firsts``."""
        first = torch.tensor(firsts).repeat_interleave(samples)[:, None]  # (rows, 1)
        at = first + torch.arange(n - min(firsts))
        back = first - max(firsts) + torch.arange(max(firsts))
        return cls(
            sample=torch.arange(samples).repeat(len(firsts)),
            at=at.clamp(max=n - 1),
            real=at < n,
            back=back.clamp(min=0),
            behind=back >= 0,
            last=n - 1 - first[:, 0],
        )

    def before(self, kept: Tensor) -> Tensor:
        """Return what is kept of the tokens before, ``(rows, heads, before, width)``.

        Args:
            kept: Keys or values of all tokens, ``(S, heads, n, width)``.
        """
        sample, back = self.sample.to(kept.device), self.back.to(kept.device)
        chosen = kept[sample[:, None], :, back].transpose(1, 2)  # from (rows, before, heads, width)
        return chosen.masked_fill(~self.behind.to(kept.device)[:, None, :, None], 0)
