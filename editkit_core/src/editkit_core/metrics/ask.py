"""What is asked of a model, and what it replies: plain values, without torch.

A metric says what it wants to know as asks and scores the replies; in between the engine puts the
asks of many metrics and requests together, once each, in batches.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import attrs

from editkit_core.errors import InvalidParameterError

__all__ = [
    "Ask",
    "Forced",
    "ForcedReply",
    "Greedy",
    "Replies",
    "Reply",
    "Sampled",
    "Text",
    "TextReply",
    "TextScores",
    "agreement",
    "from_plain",
    "to_plain",
]


def agreement(left: Sequence[int], right: Sequence[int]) -> float:
    """Return the share of positions at which two equally long sequences agree, 0 to 1."""
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(right)


@attrs.frozen(slots=False)
class _Asked:
    """What all asks share."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what is asked, in hexadecimal; equal for equal asks, also in other runs."""
        said = {"ask": type(self).__name__, **attrs.asdict(self)}
        text = json.dumps(said, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@attrs.frozen(slots=False)
class Forced(_Asked):
    """How likely is this continuation, token by token (teacher forcing)?

    Attributes:
        prompt: Plain text; for an encoder-decoder what the encoder reads.
        target: Its continuation, joined to the prompt by the join rule; for an encoder-decoder what
            the decoder is to say.
    """

    prompt: str
    target: str


@attrs.frozen(slots=False)
class Greedy(_Asked):
    """What do you say, taking the likeliest token each time, until your natural stop?

    Attributes:
        prompt: Plain text.
        max_new_tokens: Most tokens of the continuation.
        answers: Accepted answers; a full stop inside one of them is not a stop.
    """

    prompt: str
    max_new_tokens: int
    answers: tuple[str, ...] = ()


@attrs.frozen(slots=False)
class Sampled(_Asked):
    """What do you say, drawing each token from the likeliest ``top_k``?

    Attributes:
        prompt: Plain text.
        length: Tokens of prompt and continuation together; at least one is drawn.
        top_k: How many tokens are drawn from.
        seed: Seed of the draws. The ask has random numbers of its own, so neither the batch it is
            in nor an edit changes them.
    """

    prompt: str
    length: int = 100
    top_k: int = 5
    seed: int = 0


@attrs.frozen(slots=False)
class Text(_Asked):
    """How likely is this text, token by token?

    Attributes:
        text: The text; what does not fit the context is left out at the end.
        max_tokens: Left out too, from here on.
    """

    text: str
    max_tokens: int | None = None


@attrs.frozen(slots=False)
class ForcedReply:
    """The reply to `Forced`; the three have one value an answer token.

    Attributes:
        predicted: The tokens the model puts first.
        target: The answer's tokens.
        nll: Negative log-likelihood of the answer's tokens, nat.
    """

    predicted: tuple[int, ...]
    target: tuple[int, ...]
    nll: tuple[float, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of answer tokens that the model puts first, 0 to 1."""
        return agreement(self.predicted, self.target)

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood a token, nat."""
        return math.fsum(self.nll) / len(self.nll)

    @property
    def probability(self) -> float:
        """Geometric mean of the tokens' probabilities, exp(-mean NLL), 0 to 1."""
        return math.exp(-self.mean_nll)


@attrs.frozen
class TextReply:
    """The reply to `Greedy` and `Sampled`.

    Attributes:
        text: The continuation. A greedy one is cut at its natural stop and stripped; with a sampled
            one ``prompt + text`` reads as one text.
    """

    text: str


@attrs.frozen
class TextScores:
    """The reply to `Text`.

    Attributes:
        nll: Negative log-likelihood of each token that a token stands before, nat.
    """

    nll: tuple[float, ...]

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood a token, nat; NaN when no token was scored."""
        return math.fsum(self.nll) / len(self.nll) if self.nll else math.nan


Ask: TypeAlias = Forced | Greedy | Sampled | Text
Reply: TypeAlias = ForcedReply | TextReply | TextScores
_REPLIES: Mapping[str, Callable[..., Reply]] = {
    kind.__name__: kind for kind in (ForcedReply, TextReply, TextScores)
}


class Replies(Mapping[Ask, Reply]):
    """What a model replied, by ask, with access by the reply's kind."""

    def __init__(self, replies: Mapping[Ask, Reply]) -> None:
        self._replies = dict(replies)

    def __getitem__(self, ask: Ask) -> Reply:
        return self._replies[ask]

    def __iter__(self) -> Iterator[Ask]:
        return iter(self._replies)

    def __len__(self) -> int:
        return len(self._replies)

    def forced(self, prompt: str, target: str) -> ForcedReply:
        """Return the reply to ``Forced(prompt, target)``."""
        reply = self[Forced(prompt, target)]
        assert isinstance(reply, ForcedReply)  # the engine answers by the ask's kind
        return reply

    def text(self, ask: Greedy | Sampled) -> str:
        """Return the text that was generated."""
        reply = self[ask]
        assert isinstance(reply, TextReply)  # as above
        return reply.text

    def scores(self, ask: Text) -> TextScores:
        """Return the scores of a text."""
        reply = self[ask]
        assert isinstance(reply, TextScores)  # as above
        return reply


def to_plain(reply: Reply) -> dict[str, Any]:  # Any: JSON values
    """Return a reply as plain JSON values."""
    return {"reply": type(reply).__name__, **attrs.asdict(reply)}


def from_plain(plain: Mapping[str, Any]) -> Reply:  # Any: JSON values
    """Return the reply that `to_plain` was given.

    Raises:
        InvalidParameterError: It is none.
    """
    values: dict[str, Any] = {  # Any: JSON values
        name: tuple(value) if isinstance(value, list) else value
        for name, value in plain.items()
        if name != "reply"
    }
    try:
        return _REPLIES[plain["reply"]](**values)
    except (KeyError, TypeError) as error:
        raise InvalidParameterError(
            f"{str(plain)[:80]!r} is no reply of a model. Remove the cache it stands in.",
        ) from error
