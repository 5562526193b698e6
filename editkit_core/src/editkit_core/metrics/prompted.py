"""Asks of a decoder by their prompt: each prompt is read once for all that is asked about it.

What is forced and what is generated after the same prompt, and both answers of a contrast, branch
off from one reading. Most tokens of a measurement are prompts, so this saves about half of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from editkit_core.metrics.ask import Ask, Forced, Greedy, Reply, Sampled, TextReply
from editkit_core.metrics.decoding import Speaker, speak, speaker
from editkit_core.metrics.forcing import Row, forced_reply, forced_row, likelihoods
from editkit_core.models.reading import DecoderReading
from editkit_core.models.text import pad_batch

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel


@attrs.define(eq=False)
class Prompt:
    """A prompt and what is asked about it.

    Attributes:
        ids: Its tokens.
        forced: Answers whose likelihood is asked.
        spoken: Continuations that are asked for.
    """

    ids: tuple[int, ...]
    forced: list[tuple[Forced, Row]] = attrs.field(factory=list)
    spoken: list[tuple[Greedy | Sampled, Speaker]] = attrs.field(factory=list)

    def __len__(self) -> int:
        longest = max((len(row) for _, row in self.forced), default=0)
        return max(longest, *(len(one) for _, one in self.spoken), len(self.ids))


def by_prompt(model: EditableModel, asks: Iterable[Ask]) -> list[Prompt]:
    """Put asks with the same prompt together.

    Raises:
        RequestError: A prompt or an answer has no token, or does not fit the model's context.
    """
    prompts: dict[tuple[int, ...], Prompt] = {}
    for ask in asks:
        if isinstance(ask, Forced):
            row = forced_row(model, ask)
            ids = row.ids[: row.first]
            prompts.setdefault(ids, Prompt(ids)).forced.append((ask, row))
        elif isinstance(ask, Greedy | Sampled):
            one = speaker(model, ask)
            prompts.setdefault(one.read, Prompt(one.read)).spoken.append((ask, one))
    return list(prompts.values())


@torch.no_grad()
def answer_prompts(
    model: EditableModel, prompts: Sequence[Prompt]
) -> Iterator[list[tuple[Ask, Reply]]]:
    """Yield the replies about each prompt, all read as one batch."""
    read = DecoderReading.begin(model, [prompt.ids for prompt in prompts])
    forced = [(i, row) for i, prompt in enumerate(prompts) for _, row in prompt.forced]
    scored = iter(_likelihoods(model, read, forced))
    spoken = [(i, one) for i, prompt in enumerate(prompts) for _, one in prompt.spoken]
    branches = read.select([i for i, _ in spoken]) if spoken else None
    said = iter(speak(model, [one for _, one in spoken], branches))
    for prompt in prompts:
        replies: list[tuple[Ask, Reply]] = [
            (ask, forced_reply(row, *next(scored))) for ask, row in prompt.forced
        ]
        replies += [(ask, TextReply(next(said))) for ask, _ in prompt.spoken]
        yield replies


def _likelihoods(
    model: EditableModel, read: DecoderReading, rows: Sequence[tuple[int, Row]]
) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Branch off into the answers: the reading predicts their first token, they the others."""
    if not rows:
        return
    parts: list[Tensor] = [read.logits[i : i + 1] for i, _ in rows]  # (1, vocab)
    longer = [k for k, (_, row) in enumerate(rows) if len(row.target) > 1]
    if longer:
        given = pad_batch(
            [rows[k][1].target[:-1] for k in longer], model.pad_id, device=model.device
        )
        branch = read.select([rows[k][0] for k in longer])
        logits = branch.feed_many(given.input_ids, given.attention_mask)
        for place, k in enumerate(longer):
            n = len(rows[k][1].target) - 1
            parts[k] = torch.cat([parts[k], logits[place, :n]])  # (n_target, vocab)
    yield from likelihoods([row for _, row in rows], parts)
