"""Free generation for measuring: each row stops by itself and draws from numbers of its own.

The batch a row is in changes neither its text nor its random numbers, so replies can be cached one
by one. Decoders and encoder-decoders go through one loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from editkit_core.metrics.ask import Greedy, Sampled
from editkit_core.metrics.texts import cut, has_stopped
from editkit_core.models.generation import Sampling, continuation
from editkit_core.models.pairs import source_ids
from editkit_core.models.reading import Reading, begin

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel


@attrs.define(eq=False, kw_only=True)
class Speaker:
    """One ask and what has been said so far.

    Attributes:
        ask: What is asked.
        read: Token ids read before the first new one: the prompt's.
        budget: Most new tokens.
        drop_spaces: Whether the prompt ended in spaces, which are not said again.
        new_ids: What has been said.
        done: Whether it has stopped.
    """

    ask: Greedy | Sampled
    read: tuple[int, ...]
    budget: int
    drop_spaces: bool
    sampling: Sampling | None = None
    generator: torch.Generator | None = None
    new_ids: list[int] = attrs.field(factory=list)
    done: bool = False

    def __len__(self) -> int:
        return len(self.read) + self.budget

    def choose(self, logits: Tensor) -> int:
        """Return the next token by this row's logits (vocab,), float32."""
        if self.sampling is None or self.generator is None:
            return int(logits.argmax())
        return int(self.sampling.draw(logits[None], self.generator)[0])

    def hear(self, model: EditableModel, token_id: int) -> None:
        """Take the next token and see whether that is the end."""
        if self.done:
            return
        self.done = token_id in model.stop_ids
        if self.done:
            return
        self.new_ids.append(token_id)
        self.done = len(self.new_ids) >= self.budget
        if isinstance(self.ask, Greedy) and not self.done:
            self.done = has_stopped(self._said(model), self.ask.answers)

    def text(self, model: EditableModel) -> str:
        """Return the continuation; a greedy one up to its natural stop."""
        said = self._said(model)
        return cut(said, self.ask.answers) if isinstance(self.ask, Greedy) else said

    def _said(self, model: EditableModel) -> str:
        if model.is_encoder_decoder:
            said = f" {continuation(model.tokenizer, (), self.new_ids).lstrip()}"
        else:
            said = continuation(model.tokenizer, self.read, self.new_ids)
        return said.lstrip(" ") if self.drop_spaces else said


def speaker(model: EditableModel, ask: Greedy | Sampled) -> Speaker:
    """Return an ask ready to be answered.

    Raises:
        PromptTooLongError: The prompt leaves no room for a token.
    """
    # A space at the end would be a token of its own, which no training text has before a word.
    prompt = ask.prompt.rstrip(" ")
    if model.is_encoder_decoder:
        read, room = source_ids(model, prompt), model.max_positions
    else:
        read = model.encode(prompt).ids or (model.start_id,)
        model.check_length(len(read) + 1, f"the prompt {prompt[:60]!r} and one new token")
        room = None if model.max_positions is None else model.max_positions - len(read)
    if isinstance(ask, Greedy):
        asked, sampling = ask.max_new_tokens, None
    else:
        asked = max(1, ask.length - (0 if model.is_encoder_decoder else len(read)))
        sampling = Sampling(top_k=ask.top_k, seed=int(ask.digest[:15], 16))
    return Speaker(
        ask=ask,
        read=read,
        budget=asked if room is None else min(asked, room),
        drop_spaces=prompt != ask.prompt,
        sampling=sampling,
        generator=None if sampling is None else sampling.generator(),
    )


@torch.no_grad()
def speak(model: EditableModel, rows: Sequence[Speaker], read: Reading | None = None) -> list[str]:
    """Return the continuation of each row, generated as one batch; rows that are done leave it.

    Args:
        model: The model as it is now.
        rows: What to answer.
        read: The rows' prompts, where they have been read already; it is left as it is.
    """
    active = [i for i, row in enumerate(rows) if row.budget > 0]
    if active:
        here = read.select(active) if read else begin(model, [rows[i].read for i in active])
        while True:
            chosen = _choose([rows[i] for i in active], here.logits)
            for i, token_id in zip(active, chosen, strict=True):
                rows[i].hear(model, token_id)
            going = [k for k, i in enumerate(active) if not rows[i].done]
            if not going:
                break
            if len(going) < len(active):
                here = here.select(going)
                active, chosen = [active[k] for k in going], [chosen[k] for k in going]
            here.feed(torch.tensor(chosen, device=model.device)[:, None])
    return [row.text(model) for row in rows]


def _choose(rows: Sequence[Speaker], logits: Tensor) -> list[int]:
    best: list[int] = logits.argmax(dim=-1).tolist()  # all at once: one transfer from the device
    return [
        token_id if row.sampling is None else row.choose(logits[i].cpu())
        for i, (row, token_id) in enumerate(zip(rows, best, strict=True))
    ]
