"""A batch of texts that a model has read and can go on from, token by token or branch by branch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from editkit_core.models.pairs import decoder_start
from editkit_core.models.text import pad_batch

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel


class Reading(Protocol):
    """What has been read, row by row.

    Attributes:
        logits: Of the next token, (rows, vocab), float32.
    """

    logits: Tensor

    def select(self, rows: Sequence[int]) -> Reading:
        """Return these rows alone, to go on with; a row may come again, and this one stays."""

    def feed(self, ids: Tensor) -> None:
        """Read one more token a row, ids (rows, 1)."""


class DecoderReading:
    """Prompts of a decoder, padded on the left so that all rows end in the same column.

    Attributes:
        logits: Of the next token, (rows, vocab), float32.
    """

    def __init__(
        self,
        model: EditableModel,
        logits: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: Any,  # Any: transformers' own cache class
    ) -> None:
        self._model = model
        self.logits = logits
        self._mask = mask
        self._positions = positions  # (rows, 1), of the last token read
        self._cache = cache

    @classmethod
    def begin(cls, model: EditableModel, prompts: Sequence[Sequence[int]]) -> DecoderReading:
        """Read prompts as one batch."""
        batch = pad_batch(prompts, model.pad_id, "left", model.device)
        out = model.model(**batch.inputs(), use_cache=True)
        return cls(
            model,
            out.logits[:, -1].float(),
            batch.attention_mask,
            batch.position_ids[:, -1:],
            out.past_key_values,
        )

    def select(self, rows: Sequence[int]) -> DecoderReading:
        """Return these rows alone; a row may come again, and this reading stays as it is."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.logits.device)
        cache = _branch(self._cache, index)
        return DecoderReading(
            self._model, self.logits[index], self._mask[index], self._positions[index], cache
        )

    def feed(self, ids: Tensor) -> None:
        """Read one more token a row."""
        self.logits = self.feed_many(ids, torch.ones_like(ids))[:, -1]

    def feed_many(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Read several tokens a row, padded on the right; the reading cannot go on after padding.

        Args:
            ids: Token ids (rows, length), int64.
            mask: 1 for tokens, 0 for padding (rows, length).

        Returns:
            The logits behind each token, (rows, length, vocab), float32.
        """
        self._mask = torch.cat([self._mask, mask], dim=1)
        steps = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        positions = self._positions + steps
        out = self._model.model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._positions, self._cache = positions[:, -1:], out.past_key_values
        logits: Tensor = out.logits
        return logits.float()


class EncoderDecoderReading:
    """Prompts in an encoder, padded on the right, and a decoder that has read its start token.

    Attributes:
        logits: Of the next token, (rows, vocab), float32.
    """

    def __init__(
        self,
        model: EditableModel,
        logits: Tensor,
        mask: Tensor,
        encoded: Tensor,
        cache: Any,  # Any: transformers' own cache class
    ) -> None:
        self._model = model
        self.logits = logits
        self._mask = mask
        self._encoded = encoded
        self._cache = cache

    @classmethod
    def begin(cls, model: EditableModel, prompts: Sequence[Sequence[int]]) -> EncoderDecoderReading:
        """Read prompts as one batch."""
        source = pad_batch(prompts, model.pad_id, device=model.device)
        out = model.model(
            input_ids=source.input_ids,
            attention_mask=source.attention_mask,
            decoder_input_ids=torch.full_like(source.input_ids[:, :1], decoder_start(model)),
            use_cache=True,
        )
        return cls(
            model,
            out.logits[:, -1].float(),
            source.attention_mask,
            out.encoder_last_hidden_state,
            out.past_key_values,
        )

    def select(self, rows: Sequence[int]) -> EncoderDecoderReading:
        """Return these rows alone; a row may come again, and this reading stays as it is."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.logits.device)
        cache = _branch(self._cache, index)
        return EncoderDecoderReading(
            self._model, self.logits[index], self._mask[index], self._encoded[index], cache
        )

    def feed(self, ids: Tensor) -> None:
        """Read one more token a row."""
        out = self._model.model(
            encoder_outputs=(self._encoded,),
            attention_mask=self._mask,
            decoder_input_ids=ids,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = out.past_key_values
        self.logits = out.logits[:, -1].float()


def begin(model: EditableModel, prompts: Sequence[Sequence[int]]) -> Reading:
    """Read prompts as one batch."""
    if model.is_encoder_decoder:
        return EncoderDecoderReading.begin(model, prompts)
    return DecoderReading.begin(model, prompts)


def _branch(cache: Any, index: Tensor) -> Any:  # Any: transformers' own cache class
    """Copy some rows of a cache; the tensors of the original are not written to."""
    if isinstance(cache, Tensor):  # the oracle models'
        return cache[index]
    branch = _apart(cache)
    branch.batch_select_indices(index)  # by the cache, so that all it keeps a row goes with it
    return branch


def _apart(cache: Any) -> Any:  # Any: as above
    """Copy a cache but for its tensors, which the copy never writes to."""
    copied = copy.copy(cache)
    for name in ("self_attention_cache", "cross_attention_cache"):
        if hasattr(cache, name):
            setattr(copied, name, _apart(getattr(cache, name)))
    if hasattr(cache, "is_updated"):
        copied.is_updated = dict(cache.is_updated)
    if hasattr(cache, "layers"):
        copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied
