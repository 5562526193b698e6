"""Teacher forcing: the likelihood and the argmax at every token of given texts.

A decoder reads prompt and answer as one text. An encoder-decoder reads the prompt in its encoder,
and its decoder is given the answer shifted right by one: the logits at a position predict the token
that stands there, never the one that was put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import torch
from torch import Tensor

from editkit_core.errors import EmptyTargetError, InvalidRequestError, UnsupportedModelError
from editkit_core.metrics.ask import Forced, ForcedReply, Text, TextScores
from editkit_core.models.text import encode, encode_pair, pad_batch

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

Side = Literal["right", "left"]


@attrs.frozen(kw_only=True)
class Row:
    """Tokens to score.

    Attributes:
        source: What the encoder reads; empty for a decoder.
        ids: What the decoder reads; its last token is only predicted.
        first: Index of the first token whose prediction counts, at least 1.
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


def forced_row(model: EditableModel, ask: Forced) -> Row:
    """Return the tokens of a prompt and its answer.

    Raises:
        EmptyTargetError: The answer has no token.
        InvalidRequestError: No token of the prompt stands before the answer.
        PromptTooLongError: They do not fit the model's context.
    """
    if not model.is_encoder_decoder:
        pair = encode_pair(model.tokenizer, ask.prompt, ask.target)
        model.check_length(len(pair.ids), f"the prompt {ask.prompt[:60]!r} with its answer")
        return Row(ids=pair.ids, first=pair.n_prompt)
    answer = encode(model.tokenizer, ask.target.strip())
    begins = (model.tokenizer.bos_token_id, model.tokenizer.cls_token_id)
    lead = int(answer.ids[0] in begins) if answer.ids else 0  # it is given, not scored
    if len(answer.ids) == lead:
        raise EmptyTargetError(
            f"The target after {ask.prompt!r} is empty. Say what the model should answer.",
            prompt=ask.prompt,
        )
    return Row(
        source=source_ids(model, ask.prompt),
        ids=(decoder_start(model), *answer.ids),
        first=1 + lead,
    )


def text_row(model: EditableModel, ask: Text) -> Row | None:
    """Return the tokens of a text, or None when it is too short for one to be predicted.

    Raises:
        UnsupportedModelError: The model is an encoder-decoder, which continues no text.
    """
    if model.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{model.name} is an encoder-decoder; the likelihood of a text alone is defined for "
            "decoders only. Leave out the metrics that need a text corpus.",
            model=model.name,
        )
    limits = [limit for limit in (ask.max_tokens, model.max_positions) if limit is not None]
    ids = encode(model.tokenizer, ask.text).ids[: min(limits, default=None)]
    return Row(ids=ids, first=1) if len(ids) > 1 else None


def source_ids(model: EditableModel, prompt: str) -> tuple[int, ...]:
    """Return what an encoder reads: the prompt with every special token its tokenizer adds.

    Raises:
        InvalidRequestError: The prompt has no token.
        PromptTooLongError: It does not fit the model's context.
    """
    ids = tuple(model.tokenizer(prompt, truncation=False, verbose=False)["input_ids"])
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


@torch.no_grad()
def score(
    model: EditableModel, rows: Sequence[Row], side: Side = "right"
) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Yield the argmax tokens and the NLL (nat) of each row's target, from one forward pass.

    Args:
        model: The model as it is now.
        rows: Of one kind, as `forced_row` or `text_row` made them.
        side: Where a decoder's rows are padded; it changes nothing. An encoder's are always padded
            on the right, for it takes no positions.
    """
    logits, offsets = _logits(model, rows, side)
    yield from likelihoods(
        rows,
        [
            logits[i, offset + row.first - 1 : offset + len(row.ids) - 1]  # (n_target, vocab)
            for i, (row, offset) in enumerate(zip(rows, offsets, strict=True))
        ],
    )


def likelihoods(
    rows: Sequence[Row], logits: Sequence[Tensor]
) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Yield the argmax tokens and the NLL (nat) of each row's target.

    Args:
        rows: The rows.
        logits: For each those that predict its target, (n_target, vocab).
    """
    wanted = torch.cat(list(logits)).float()  # (targets of all rows, vocab)
    targets = torch.tensor([t for row in rows for t in row.target], device=wanted.device)
    chances = wanted.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    best, nll = wanted.argmax(dim=-1).tolist(), (-chances).tolist()
    start = 0
    for row in rows:
        end = start + len(row.target)
        yield tuple(best[start:end]), tuple(nll[start:end])
        start = end


def forced_reply(row: Row, predicted: tuple[int, ...], nll: tuple[float, ...]) -> ForcedReply:
    """Return the reply to a `Forced`."""
    return ForcedReply(predicted=predicted, target=row.target, nll=nll)


def text_scores(row: Row, predicted: tuple[int, ...], nll: tuple[float, ...]) -> TextScores:
    """Return the reply to a `Text`."""
    return TextScores(nll=nll)


def _logits(
    model: EditableModel, rows: Sequence[Row], side: Side
) -> tuple[Tensor, tuple[int, ...]]:
    """Logits (rows, length, vocab) and at which column each row begins."""
    if not model.is_encoder_decoder:
        batch = pad_batch([row.ids for row in rows], model.pad_id, side, model.device)
        return model.logits(batch), batch.pad
    source = pad_batch([row.source for row in rows], model.pad_id, device=model.device)
    given = pad_batch([row.ids for row in rows], model.pad_id, device=model.device)
    out = model.model(
        input_ids=source.input_ids,
        attention_mask=source.attention_mask,
        decoder_input_ids=given.input_ids,
        decoder_attention_mask=given.attention_mask,
        use_cache=False,
    )
    logits: Tensor = out.logits
    return logits, given.pad
