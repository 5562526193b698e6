"""From characters to tokens: spans, prompt and target, padded batches.

Positions always come from the tokenizer's offset mapping on the final text, never from the length
of a prefix or a guess about spaces. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import attrs

from editkit_core.errors import (
    EmptyTargetError,
    InvalidRequestError,
    SubjectNotInPromptError,
    TokenizerWithoutOffsetsError,
)
from editkit_core.models.offsets import Offsets, trusted_offsets
from editkit_core.types import TokenPosition

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@attrs.frozen
class TokenSpan:
    """Tokens ``start`` to ``end`` (exclusive), counted without padding."""

    start: int
    end: int


@attrs.frozen(kw_only=True)
class Encoded:
    """A text and its tokens.

    Attributes:
        ids: Token ids with the BOS the tokenizer adds, without the EOS it adds.
        offsets: For each token the characters (start, end) of ``text`` it stands for; a special
            token has an empty span.
        text: The text.
    """

    ids: tuple[int, ...]
    offsets: Offsets
    text: str

    def __len__(self) -> int:
        return len(self.ids)


@attrs.frozen(kw_only=True)
class EncodedPair:
    """A prompt continued by a target.

    Attributes:
        encoded: The tokens of both, encoded as one text.
        n_prompt: How many of them belong to the prompt; the logits at ``n_prompt - 1`` predict the
            first target token.
    """

    encoded: Encoded
    n_prompt: int

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids."""
        return self.encoded.ids

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt's token ids."""
        return self.encoded.ids[: self.n_prompt]

    @property
    def target_ids(self) -> tuple[int, ...]:
        """The target's token ids."""
        return self.encoded.ids[self.n_prompt :]

    def position(self, subject_chars: tuple[int, int], token: TokenPosition) -> int:
        """Index of a token of the prompt; see `position`."""
        return _position(self.encoded, self.n_prompt, subject_chars, token)


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the tokenizer maps characters to tokens.

    Raises:
        TokenizerWithoutOffsetsError: It is a slow tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerWithoutOffsetsError(
            f"The tokenizer {type(tokenizer).__name__} gives no character offsets, so the "
            "subject's tokens cannot be found. Use a fast tokenizer: a model folder with a "
            "tokenizer.json.",
            tokenizer=type(tokenizer).__name__,
        )


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoded:
    """Encode a text with its leading special tokens (BOS) and without trailing ones (EOS, SEP).

    Raises:
        TokenizerWithoutOffsetsError: The tokenizer has no offsets, or they and its decoded pieces
            both contradict the text.
    """
    require_offsets(tokenizer)
    out = tokenizer(
        text,
        add_special_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        truncation=False,
        verbose=False,
    )
    added: list[int] = list(out["special_tokens_mask"])
    keep = len(added) if text else _leading_specials(tokenizer)
    while text and keep and added[keep - 1]:
        keep -= 1
    ids = tuple(out["input_ids"][:keep])
    lead = added[:keep].index(0) if 0 in added[:keep] else keep
    offsets = tuple((int(start), int(end)) for start, end in out["offset_mapping"][:keep])
    offsets = trusted_offsets(tokenizer, text, ids, offsets, lead)
    return Encoded(ids=ids, offsets=offsets, text=text)


def token_span(encoded: Encoded, char_start: int, char_end: int) -> TokenSpan:
    """Return the tokens that overlap the characters ``char_start`` to ``char_end``.

    White space at the start of a token's own characters does not count, so a token ``" was"`` does
    not belong to a subject that ends before the space.

    Raises:
        SubjectNotInPromptError: No token stands for these characters.
    """
    inside = []
    for index, (start, end) in enumerate(encoded.offsets):
        piece = encoded.text[start:end]
        start += len(piece) - len(piece.lstrip())
        if start < end and start < char_end and end > char_start:
            inside.append(index)
    if not inside:
        raise SubjectNotInPromptError(
            f"No token stands for {encoded.text[char_start:char_end]!r} (characters {char_start} "
            f"to {char_end} of {encoded.text!r}). Write the subject with characters the tokenizer "
            "knows.",
            start=char_start,
            end=char_end,
        )
    return TokenSpan(inside[0], inside[-1] + 1)


def join(prompt: str, target: str) -> str:
    """Join with one space, unless the prompt is empty or ends in white space.

    White space at the target's start is dropped: the join rule alone decides about it.
    """
    space = "" if not prompt or prompt[-1].isspace() else " "
    return f"{prompt}{space}{target.lstrip()}"


def encode_pair(tokenizer: PreTrainedTokenizerBase, prompt: str, target: str) -> EncodedPair:
    """Encode a prompt and its continuation as one text.

    The prompt's tokens are the longest common token prefix of the prompt alone and of the joined
    text, so a space at the prompt's end that melts into the target's first token is the target's.

    Raises:
        EmptyTargetError: The target is empty or has no token of its own.
        InvalidRequestError: No token of the prompt is left before the target.
    """
    if not target.strip():
        raise EmptyTargetError(
            f"The target after {prompt!r} is empty. Say what the model should answer.",
            prompt=prompt,
        )
    alone = encode(tokenizer, prompt)
    encoded = encode(tokenizer, join(prompt, target))
    n_prompt = _common_prefix(alone.ids, encoded.ids)
    if n_prompt == len(encoded.ids):
        raise EmptyTargetError(
            f"The target {target!r} has no token of its own after {prompt!r}. Choose a target that "
            "the tokenizer can write.",
            prompt=prompt,
            target=target,
        )
    if n_prompt == 0:
        raise InvalidRequestError(
            f"No token of the prompt {prompt!r} stands before the target {target!r}, so nothing "
            "predicts it. Give a longer prompt.",
            prompt=prompt,
            target=target,
        )
    return EncodedPair(encoded=encoded, n_prompt=n_prompt)


def position(
    encoded: Encoded,
    subject_chars: tuple[int, int],
    token: TokenPosition,
    *,
    n_tokens: int | None = None,
) -> int:
    """Return the index, without padding, of the token a method reads or writes.

    Args:
        encoded: The prompt.
        subject_chars: Character span (start, end) of the subject in the prompt.
        token: Which token; ``subject_first_after_last`` is the first one after the subject, or
            the prompt's last when the subject ends it.
        n_tokens: How many tokens are read when there is more at the end than ``encoded`` has, as
            the EOS of an encoder.

    Raises:
        SubjectNotInPromptError: No token stands for the subject.
    """
    length = len(encoded.ids) if n_tokens is None else n_tokens
    return _position(encoded, length, subject_chars, token)


@attrs.frozen(eq=False, kw_only=True)
class Batch:
    """Rows of tokens padded to one length; all tensors are ``(rows, len)``, int64.

    Attributes:
        input_ids: Token ids.
        attention_mask: 1 for tokens, 0 for padding.
        position_ids: Counted over a row's own tokens, so the padding side changes nothing.
        pad: How many padding tokens stand on the left of each row.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    pad: tuple[int, ...]

    def index(self, row: int, unpadded_position: int) -> int:
        """Column of a row's token, given its position without padding."""
        return self.pad[row] + unpadded_position

    def inputs(self) -> dict[str, torch.Tensor]:
        """The keyword arguments of a model's forward."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


def pad_batch(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    side: Literal["right", "left"] = "right",
    device: torch.device | str | None = None,
) -> Batch:
    """Pad rows of token ids to the longest one.

    Raises:
        InvalidRequestError: There is no row, or an empty one.
    """
    import torch

    if not rows or not all(len(row) for row in rows):
        raise InvalidRequestError(
            f"A batch of {len(rows)} rows has a row without a token. Give every row some text."
        )
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    pad = tuple(width - len(row) if side == "left" else 0 for row in rows)
    for index, row in enumerate(rows):
        here = slice(pad[index], pad[index] + len(row))
        ids[index, here] = torch.tensor(row, dtype=torch.int64)
        mask[index, here] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return Batch(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions.to(device),
        pad=pad,
    )


def _position(
    encoded: Encoded, n_tokens: int, subject_chars: tuple[int, int], token: TokenPosition
) -> int:
    if token == "last":
        return n_tokens - 1
    span = token_span(encoded, *subject_chars)
    if token == "subject_first":
        return span.start
    if token == "subject_last":
        return span.end - 1
    return min(span.end, n_tokens - 1)


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length


def _leading_specials(tokenizer: PreTrainedTokenizerBase) -> int:
    # An empty text gives BOS and EOS side by side; only a text between them tells which is which.
    out = tokenizer("a", add_special_tokens=True, return_special_tokens_mask=True)
    added: list[int] = list(out["special_tokens_mask"])
    return added.index(0) if 0 in added else 0
