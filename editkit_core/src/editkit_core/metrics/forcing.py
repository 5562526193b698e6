"""Teacher forcing: the likelihood and the argmax at every token of given texts.

A decoder reads prompt and answer as one text. An encoder-decoder reads the prompt in its encoder,
and its decoder is given the answer shifted right by one: the logits at a position predict the token
that stands there, never the one that was put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editkit_core.errors import UnsupportedModelError
from editkit_core.metrics.ask import Forced, ForcedReply, Text, TextScores
from editkit_core.models.pairs import PairRow, Side, pair_row
from editkit_core.models.text import encode, pad_batch

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

Row = PairRow


def forced_row(model: EditableModel, ask: Forced) -> PairRow:
    """Return the tokens of a prompt and its answer; see `models.pairs.pair_row`."""
    return pair_row(model, ask.prompt, ask.target)


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
        queries = [batch.index(i, row.first - 1) for i, row in enumerate(rows)]
        with model.asking(torch.tensor(queries, device=model.device)):
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
