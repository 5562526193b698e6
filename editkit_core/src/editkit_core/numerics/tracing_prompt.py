"""What causal tracing asks of a model: the prompt's ids, the subject's tokens, the answer's id."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from editkit_core.errors import InvalidRequestError, UnsupportedModelError
from editkit_core.models.editable import EditableModel
from editkit_core.models.text import Encoded, TokenSpan, pad_batch, token_span
from editkit_core.numerics.tracing_run import embedding_entries, next_token_logits
from editkit_core.types import EditRequest

# The paper corrupts with 3 times the spread of the subjects' embedding entries.
NOISE_FACTOR = 3.0


@attrs.frozen(kw_only=True)
class TracedPrompt:
    """A prompt ready to be traced.

    Attributes:
        text: The prompt's text.
        ids: Its token ids, without the answer.
        tokens: Its tokens as text.
        subject: Half-open token span of the subject.
        answer_id: The next token that is traced.
        answer: That token as text.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    subject: tuple[int, int]
    answer_id: int
    answer: str


def read_prompt(model: EditableModel, request: EditRequest, answer: str | None) -> TracedPrompt:
    """Return the request's prompt, traced with ``answer`` or with what the model says itself.

    White space at the prompt's end is left to the answer, as where an edit joins a target to it.

    Args:
        model: The model and its tokenizer.
        request: Gives prompt and subject.
        answer: Text whose first token is traced; None takes the greedy next token.

    Raises:
        InvalidRequestError: The tokenizer puts the subject's end and the answer in one token.
        UnsupportedModelError: The model is an encoder-decoder.
        PromptTooLongError: The prompt does not fit the model's context.
    """
    if model.is_encoder_decoder:
        raise UnsupportedModelError(
            f"Causal tracing reads decoders only, and {model.name} is an encoder-decoder. Name a "
            "layer yourself.",
            model=model.name,
        )
    text = request.text.rstrip()
    if answer is None:
        encoded = model.encode(text)
        n_prompt = len(encoded.ids)
    else:
        pair = model.encode_pair(text, answer)
        encoded, n_prompt = pair.encoded, pair.n_prompt
    model.check_length(n_prompt, f"the prompt {text!r}")
    span = _subject(encoded, request)
    if span.end > n_prompt:
        raise InvalidRequestError(
            f"The tokenizer joins the end of {request.subject!r} and the answer {answer!r} in one "
            "token, so there is no state between them. Put a word after the subject.",
            subject=request.subject,
            answer=answer,
        )
    ids = tuple(encoded.ids[:n_prompt])
    answer_id = greedy_next_id(model, ids) if answer is None else encoded.ids[n_prompt]
    return TracedPrompt(
        text=text,
        ids=ids,
        tokens=_token_texts(model, encoded, n_prompt),
        subject=(span.start, span.end),
        answer_id=answer_id,
        answer=str(model.tokenizer.decode([answer_id])),
    )


def greedy_next_id(model: EditableModel, ids: Sequence[int]) -> int:
    """Return the id of the most likely next token."""
    batch = pad_batch([tuple(ids)], model.pad_id, device=model.device)
    return int(next_token_logits(model, batch)[0].argmax())


def answers_as_expected(model: EditableModel, request: EditRequest) -> bool:
    """Tell whether the greedy next token is the first of ``target_true`` (or none is known)."""
    if not (request.target_true or "").strip():
        return True
    expected = read_prompt(model, request, request.target_true)
    return greedy_next_id(model, expected.ids) == expected.answer_id


def noise_scale(model: EditableModel, requests: Sequence[EditRequest]) -> float:
    """Return 3 sigma: sigma is the standard deviation of all embedding entries of the subjects."""
    entries = []
    for request in requests:
        encoded = model.encode(request.text.rstrip())
        span = _subject(encoded, request)
        entries.append(embedding_entries(model, encoded.ids, (span.start, span.end)))
    return NOISE_FACTOR * float(torch.cat(entries).std())


def _subject(encoded: Encoded, request: EditRequest) -> TokenSpan:
    start, end = request.subject_span
    # A subject may itself end in the white space that the prompt lost.
    return token_span(encoded, start, min(end, len(request.text.rstrip())))


def _token_texts(model: EditableModel, encoded: Encoded, n_tokens: int) -> tuple[str, ...]:
    """Return each token's characters in the text; of a token that has none there, its own."""
    places = list(zip(encoded.ids, encoded.offsets, strict=True))[:n_tokens]
    return tuple(
        encoded.text[start:end] or str(model.tokenizer.decode([token_id]))
        for token_id, (start, end) in places
    )
