"""Prompts with their targets as one batch, for decoders and encoder-decoders alike.

A decoder reads prompt and target as one text. An encoder-decoder reads the prompt in its encoder,
and its decoder is given the target shifted right by one. Either way ``logits[:, t]`` predicts
``labels[:, t]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import torch
from torch import Tensor

from editkit_core.errors import EmptyTargetError, InvalidRequestError
from editkit_core.models.text import encode, encode_pair, pad_batch

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

Side = Literal["right", "left"]
IGNORED = -100


@attrs.frozen(kw_only=True)
class PairRow:
    """The tokens of a prompt and its target.

    Attributes:
        source: What the encoder reads; empty for a decoder.
        ids: What the decoder reads; its last token is only predicted.
        first: Index in ``ids`` of the first token whose prediction counts, at least 1.
    """

    source: tuple[int, ...] = ()
    ids: tuple[int, ...]
    first: int

    @property
    def target(self) -> tuple[int, ...]:
        """The tokens that are predicted."""
        return self.ids[self.first :]

    def __len__(self) -> int:
        return len(self.source) + len(self.ids)


@attrs.frozen(eq=False, kw_only=True)
class PairBatch:
    """Prompts with their targets, padded.

    Attributes:
        inputs: The keyword arguments of the model's forward, without labels.
        labels: Token ids (rows, len), int64: ``logits[:, t]`` predicts ``labels[:, t]``; -100 where
            nothing counts.
        queries: Column (rows,), int64, of each prompt's last token: in the text a decoder reads, or
            in what an encoder reads.
        rows: The rows before padding.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    queries: Tensor
    rows: tuple[PairRow, ...]


def pair_row(model: EditableModel, prompt: str, target: str, *, end: bool = False) -> PairRow:
    """Return the tokens of a prompt and its target.

    Args:
        model: The model that is to read them.
        prompt: What is asked.
        target: The answer.
        end: Of an encoder-decoder, whether the EOS after the answer is predicted too, as a model
            must that is to stop there. A decoder's answer stands within a text.

    Raises:
        EmptyTargetError: The target has no token.
        InvalidRequestError: No token of the prompt stands before the target.
        PromptTooLongError: They do not fit the model's context.
    """
    if not model.is_encoder_decoder:
        pair = encode_pair(model.tokenizer, prompt, target)
        model.check_length(len(pair.ids), f"the prompt {prompt[:60]!r} with its answer")
        return PairRow(ids=pair.ids, first=pair.n_prompt)
    answer = encode(model.tokenizer, target.strip())
    begins = (model.tokenizer.bos_token_id, model.tokenizer.cls_token_id)
    lead = int(answer.ids[0] in begins) if answer.ids else 0  # it is given, not predicted
    if len(answer.ids) == lead:
        raise EmptyTargetError(
            f"The target after {prompt!r} is empty. Say what the model should answer.",
            prompt=prompt,
        )
    eos = model.tokenizer.eos_token_id
    ids = (decoder_start(model), *answer.ids, *([eos] if end and isinstance(eos, int) else []))
    model.check_length(len(ids), f"the answer {target[:60]!r}")
    return PairRow(source=source_ids(model, prompt), ids=ids, first=1 + lead)


def pair_batch(
    model: EditableModel,
    pairs: Sequence[tuple[str, str]],
    side: Side = "right",
    *,
    end: bool = False,
) -> PairBatch:
    """Encode and pad prompts with their targets; see `pair_row` for what is refused.

    Args:
        model: The model that is to read them.
        pairs: Prompts and targets, at least one.
        side: Where a decoder's rows are padded; it changes nothing. An encoder's are always padded
            on the right.
        end: Whether an encoder-decoder's EOS is predicted too; see `pair_row`.
    """
    rows = [pair_row(model, prompt, target, end=end) for prompt, target in pairs]
    return pad_pairs(model, rows, side)


def pad_pairs(model: EditableModel, rows: Sequence[PairRow], side: Side = "right") -> PairBatch:
    """Pad rows to one batch on the model's device."""
    shift = side if not model.is_encoder_decoder else "right"
    given = pad_batch([row.ids for row in rows], model.pad_id, shift, model.device)
    labels = torch.full_like(given.input_ids, IGNORED)
    for i, row in enumerate(rows):
        start = given.index(i, row.first - 1)
        labels[i, start : start + len(row.target)] = torch.tensor(row.target)
    if not model.is_encoder_decoder:
        queries = [given.index(i, row.first - 1) for i, row in enumerate(rows)]
        inputs = given.inputs()
    else:
        source = pad_batch([row.source for row in rows], model.pad_id, device=model.device)
        queries = [len(row.source) - 1 for row in rows]
        inputs = {
            "input_ids": source.input_ids,
            "attention_mask": source.attention_mask,
            "decoder_input_ids": given.input_ids,
            "decoder_attention_mask": given.attention_mask,
        }
    return PairBatch(
        inputs=inputs,
        labels=labels,
        queries=torch.tensor(queries, device=model.device),
        rows=tuple(rows),
    )


def pair_logits(model: EditableModel, batch: PairBatch) -> Tensor:
    """Return the logits of every position, (rows, len, vocab), float32; gradients flow."""
    with model.asking(batch.queries):
        logits: Tensor = model.model(**batch.inputs, use_cache=False).logits
    return logits.float()


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of each row's target tokens, (rows,), in nat.

    Args:
        logits: (rows, len, vocab).
        labels: (rows, len), -100 where nothing counts; every row counts at least one.
    """
    counts = labels != IGNORED
    chances = logits.log_softmax(dim=-1)
    chosen = chances.gather(-1, labels.clamp(min=0)[..., None])[..., 0]  # (rows, len)
    return -(chosen * counts).sum(dim=1) / counts.sum(dim=1)


def source_ids(model: EditableModel, prompt: str) -> tuple[int, ...]:
    """Return what an encoder reads: the prompt with every special token its tokenizer adds.

    Spaces at the prompt's end are dropped: to a decoder too they belong to what comes after.

    Raises:
        InvalidRequestError: The prompt has no token.
        PromptTooLongError: It does not fit the model's context.
    """
    ids = tuple(model.tokenizer(prompt.rstrip(" "), truncation=False, verbose=False)["input_ids"])
    if not ids:
        raise InvalidRequestError(f"The prompt {prompt!r} has no token. Give some text.")
    model.check_length(len(ids), f"the prompt {prompt[:60]!r}")
    return ids


def decoder_start(model: EditableModel) -> int:
    """Return the token id that an encoder-decoder's decoder begins with."""
    for holder in (model.model.config, getattr(model.model, "generation_config", None)):
        start = getattr(holder, "decoder_start_token_id", None)
        if isinstance(start, int):
            return start
    return model.pad_id  # as T5 does
