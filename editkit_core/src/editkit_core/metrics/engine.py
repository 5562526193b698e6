"""Answering asks with a model: each once, sorted by length, in batches, and from a cache.

All asks of all metrics and requests go in together. Rows of similar length share a batch, so little
is spent on padding; neither the batch nor the padding side changes a reply beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from editkit_core.metrics.ask import (
    Ask,
    Forced,
    Greedy,
    Replies,
    Reply,
    Sampled,
    Text,
    TextReply,
    TextScores,
)
from editkit_core.types import Progress, SilentProgress

if TYPE_CHECKING:
    from editkit_core.metrics.cache import ReplyCache
    from editkit_core.models.editable import EditableModel
    from editkit_core.models.pairs import Side

ROWS = 64
TOKENS = 16_384
LOGITS = 1 << 28  # of a forward pass; in float32 a gibibyte
TOKENS_ON_CPU = 768  # more no longer fits its caches, and is slower
A = TypeVar("A", bound=Ask)
R = TypeVar("R")


def answer(
    model: EditableModel,
    asks: Iterable[Ask],
    *,
    cache: ReplyCache | None = None,
    rows: int = ROWS,
    tokens: int | None = None,
    side: Side = "left",
    progress: Progress | None = None,
) -> Replies:
    """Answer every ask once.

    Args:
        model: The model as it is now.
        asks: What is asked; equal asks are answered once.
        cache: Where replies are looked up and kept, by the model's fingerprint and the ask.
        rows: Most rows a forward pass.
        tokens: Most tokens a forward pass, padding included; a longer row goes alone. None takes
            what suits the model's device.
        side: Where a decoder's rows are padded; it changes no reply. ``left`` reads each prompt
            once for all that is asked about it, ``right`` reads every forced row by itself.
        progress: Told of every ask.

    Raises:
        PromptTooLongError: A prompt with its answer does not fit the model's context.
        RequestError: A prompt or an answer has no token.
        UnsupportedModelError: A text is to be scored by an encoder-decoder.
    """
    unique = tuple(dict.fromkeys(asks))
    shelf = cache.shelf(model) if cache is not None else None
    replies: dict[Ask, Reply] = {}
    if shelf is not None:
        replies.update((ask, shelf[ask.digest]) for ask in unique if ask.digest in shelf)
    missing = [ask for ask in unique if ask not in replies]
    if tokens is None:
        tokens = _suitable(model)
    progress = progress or SilentProgress()
    progress.start("asking the model", len(missing))
    try:
        for ask, reply in _answered(model, missing, rows, tokens, side):
            replies[ask] = reply
            if shelf is not None:
                shelf.keep(ask, reply)
            progress.advance()
    finally:
        progress.finish()
    if shelf is not None:
        shelf.save()
    return Replies({ask: replies[ask] for ask in unique})


def _suitable(model: EditableModel) -> int:
    most = TOKENS_ON_CPU if model.device.type == "cpu" else TOKENS
    return max(1, min(most, LOGITS // len(model.tokenizer)))


def _answered(
    model: EditableModel, asks: Sequence[Ask], rows: int, tokens: int, side: Side
) -> Iterator[tuple[Ask, Reply]]:
    from editkit_core.metrics import decoding, forcing, prompted

    rest: Sequence[Ask] = asks
    if side == "left" and not model.is_encoder_decoder:
        prompts = prompted.by_prompt(model, asks)
        for _, replies in _batched(
            prompts, lambda batch: prompted.answer_prompts(model, batch), rows, tokens
        ):
            yield from replies
        rest = _of(Text, asks)

    def likelihoods(batch: Sequence[forcing.Row]) -> Iterator[Any]:  # Any: a pair of tuples
        return forcing.score(model, batch, side)

    def run(
        ready: Sequence[tuple[Ask, R]], answered: Callable[[Sequence[R]], Iterable[Any]]
    ) -> Iterator[tuple[tuple[Ask, R], Any]]:  # Any: as above
        return _batched(ready, lambda batch: answered([row for _, row in batch]), rows, tokens)

    forced: list[tuple[Ask, forcing.Row]] = [
        (ask, forcing.forced_row(model, ask)) for ask in _of(Forced, rest)
    ]
    for (ask, row), scored in run(forced, likelihoods):
        yield ask, forcing.forced_reply(row, *scored)
    texts = [(ask, forcing.text_row(model, ask)) for ask in _of(Text, rest)]
    for text, text_row in texts:
        if text_row is None:
            yield text, TextScores(())
    long: list[tuple[Ask, forcing.Row]] = [(text, row) for text, row in texts if row is not None]
    for (ask, row), scored in run(long, likelihoods):
        yield ask, forcing.text_scores(row, *scored)
    generated: list[Greedy | Sampled] = [*_of(Greedy, rest), *_of(Sampled, rest)]
    spoken: list[tuple[Ask, decoding.Speaker]] = [
        (ask, decoding.speaker(model, ask)) for ask in generated
    ]
    for (ask, _), said in run(spoken, lambda batch: decoding.speak(model, batch)):
        yield ask, TextReply(said)


def _of(kind: type[A], asks: Sequence[Ask]) -> list[A]:
    return [ask for ask in asks if isinstance(ask, kind)]


def _batched(
    ready: Sequence[R],
    run: Callable[[Sequence[R]], Iterable[Any]],  # Any: what one row gives
    rows: int,
    tokens: int,
) -> Iterator[tuple[R, Any]]:  # Any: as above
    """Run rows in batches of similar length, the longest batch first: it would fail first."""
    ordered = sorted(ready, key=_length, reverse=True)
    start = 0
    while start < len(ordered):
        fit = max(1, min(rows, tokens // max(1, _length(ordered[start]))))
        chosen = ordered[start : start + fit]
        yield from zip(chosen, run(chosen), strict=True)
        start += fit


def _length(row: Any) -> int:  # Any: a row, or an ask and its row
    return len(row[1] if isinstance(row, tuple) else row)
