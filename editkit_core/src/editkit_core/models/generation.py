"""Continue texts with a model: greedy or sampled, in padded batches that equal one by one.

A decoder continues its prompt; an encoder-decoder answers what its encoder has read. Either way
prompt and continuation read as one text.

The loop is our own rather than transformers' ``generate``: it reads no generation settings of the
checkpoint, and draws from a generator of its own, so the global random state stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from editkit_core.errors import InvalidParameterError
from editkit_core.models.pairs import source_ids
from editkit_core.models.reading import begin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from editkit_core.models.editable import EditableModel


@attrs.frozen(kw_only=True)
class Sampling:
    """How the next token is drawn; ``None`` instead of a `Sampling` means greedy.

    Attributes:
        temperature: Divides the logits.
        top_k: Draw from the k likeliest tokens only.
        top_p: Draw from the smallest set of tokens that holds this probability.
        seed: Seed; None draws one from the operating system.
    """

    temperature: float = attrs.field(default=1.0)
    top_k: int | None = attrs.field(default=None)
    top_p: float | None = attrs.field(default=None)
    seed: int | None = None

    @temperature.validator
    def _check_temperature(self, _: object, value: float) -> None:
        if not value > 0:
            raise InvalidParameterError(
                f"The temperature is {value}; it must be above 0. For the likeliest token each "
                "time, do not sample.",
                temperature=value,
            )

    @top_k.validator
    def _check_top_k(self, _: object, value: int | None) -> None:
        if value is not None and value < 1:
            raise InvalidParameterError(f"top_k is {value}; it must be 1 or more.", top_k=value)

    @top_p.validator
    def _check_top_p(self, _: object, value: float | None) -> None:
        if value is not None and not 0 < value <= 1:
            raise InvalidParameterError(
                f"top_p is {value}; it must be above 0 and at most 1.", top_p=value
            )

    def generator(self) -> torch.Generator:
        """A fresh generator; on the CPU, so that a seed means the same on every device."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one token a row from ``logits (rows, vocab)``, float32; returns ``(rows,)``."""
        scores = logits.cpu() / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            kth = scores.topk(self.top_k, dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < kth, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = scores.sort(dim=-1, descending=True)
            chances = ordered.softmax(dim=-1)
            beyond = chances.cumsum(dim=-1) - chances >= self.top_p
            scores = scores.masked_fill(beyond.gather(-1, order.argsort(dim=-1)), -torch.inf)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)[:, 0]


def continue_texts(
    model: EditableModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_at: str | None = None,
    batch_size: int = 32,
) -> list[str]:
    """Return one continuation a prompt; see `EditableModel.generate`."""
    generator = sampling.generator() if sampling else None
    rows = [_Row.start(model, prompt, stop_at) for prompt in prompts]
    for first in range(0, len(rows), batch_size):
        _continue_rows(model, rows[first : first + batch_size], max_new_tokens, sampling, generator)
    return [row.text for row in rows]


@attrs.define(eq=False, kw_only=True)
class _Row:
    """One prompt and what has been generated after it."""

    model: EditableModel
    prompt_ids: tuple[int, ...]
    drop_spaces: bool
    stop_at: str | None
    new_ids: list[int] = attrs.field(factory=list)
    done: bool = False

    @classmethod
    def start(cls, model: EditableModel, prompt: str, stop_at: str | None) -> _Row:
        # A space at the end would be a token of its own, which no training text has before a word.
        stripped = prompt.rstrip(" ")
        if model.is_encoder_decoder:
            ids = source_ids(model, prompt)
        else:
            ids = model.encode(stripped).ids or (model.start_id,)
            model.check_length(len(ids) + 1, f"the prompt {prompt[:60]!r} and one new token")
        return cls(
            model=model, prompt_ids=ids, drop_spaces=stripped != prompt, stop_at=stop_at or None
        )

    def add(self, token_id: int) -> None:
        if self.done:
            return
        if token_id in self.model.stop_ids:
            self.done = True
            return
        self.new_ids.append(token_id)
        limit = self.model.max_positions
        before = 0 if self.model.is_encoder_decoder else len(self.prompt_ids)
        self.done = limit is not None and before + len(self.new_ids) >= limit
        self.done = self.done or (self.stop_at is not None and self.stop_at in self._decode())

    @property
    def text(self) -> str:
        """The continuation."""
        text = self._decode()
        return text.partition(self.stop_at)[0] if self.stop_at else text

    def _decode(self) -> str:
        if self.model.is_encoder_decoder:
            new = after_prompt(self.model.tokenizer, self.new_ids)
        else:
            new = continuation(self.model.tokenizer, self.prompt_ids, self.new_ids)
        return new.lstrip(" ") if self.drop_spaces else new


def continuation(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], new_ids: Sequence[int]
) -> str:
    """Return the text that ``new_ids`` add after ``prompt_ids``, its leading space included.

    They are decoded together with the prompt: alone, a first token would lose its leading space.
    """
    before = _spell(tokenizer, prompt_ids)
    whole = _spell(tokenizer, (*prompt_ids, *new_ids))
    return whole[len(before) :] if whole.startswith(before) else _spell(tokenizer, new_ids)


def after_prompt(tokenizer: PreTrainedTokenizerBase, new_ids: Sequence[int]) -> str:
    """Return what an encoder-decoder answers, with the space that joins it to its prompt."""
    said = _spell(tokenizer, new_ids).lstrip()
    return f" {said}" if said else ""


def _spell(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


@torch.no_grad()
def _continue_rows(
    model: EditableModel,
    rows: Sequence[_Row],
    max_new_tokens: int,
    sampling: Sampling | None,
    generator: torch.Generator | None,
) -> None:
    reading = begin(model, [row.prompt_ids for row in rows])
    for _ in range(max_new_tokens):
        if sampling is not None and generator is not None:
            chosen = sampling.draw(reading.logits, generator)
        else:
            chosen = reading.logits.argmax(dim=-1)
        for row, token_id in zip(rows, chosen.tolist(), strict=True):
            row.add(token_id)
        if all(row.done for row in rows):
            break
        reading.feed(chosen.to(model.device)[:, None])
