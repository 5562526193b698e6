"""Character offsets one can trust: the tokenizer's, or those of its decoded pieces.

Some fast tokenizers report wrong offsets (huggingface/tokenizers issue 1553). Offsets that go
backwards, leave the text or skip characters are replaced by what ever longer decodings spell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editkit_core.errors import TokenizerWithoutOffsetsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = tuple[tuple[int, int], ...]


def trusted_offsets(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    ids: Sequence[int],
    offsets: Offsets,
    lead: int,
) -> Offsets:
    """Return ``offsets`` if they fit the text, else those of the decoded pieces.

    Args:
        tokenizer: The tokenizer that made them.
        text: The text.
        ids: Its token ids.
        offsets: For each token its characters (start, end).
        lead: How many special tokens the tokenizer put first.

    Raises:
        TokenizerWithoutOffsetsError: Neither fits.
    """
    in_order = _in_order(text, offsets)
    if in_order and _covers_all(text, offsets):
        return offsets
    decoded = _decoded_offsets(tokenizer, text, ids, lead)
    if decoded is not None:
        return decoded
    if in_order:  # a normalizer dropped some characters: the rest still has its place
        return offsets
    raise TokenizerWithoutOffsetsError(
        f"The tokenizer {type(tokenizer).__name__} gives offsets that contradict {text!r}, and its "
        "decoded tokens do not spell it either. Use another version of the tokenizer.",
        tokenizer=type(tokenizer).__name__,
    )


def _in_order(text: str, offsets: Offsets) -> bool:
    last = 0
    for start, end in offsets:
        if start == end == 0:  # a special token
            continue
        if not last <= start <= end <= len(text):
            return False
        last = start
    return True


def _covers_all(text: str, offsets: Offsets) -> bool:
    covered = 0
    for start, end in offsets:
        if text[covered:start].strip():
            return False
        covered = max(covered, end)
    return not text[covered:].strip()


def _decoded_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int], lead: int
) -> Offsets | None:
    """Offsets by decoding ever more tokens, or None when they do not spell the text."""

    def spelled(end: int) -> str:
        return str(tokenizer.decode(list(ids[lead:end]), clean_up_tokenization_spaces=False))

    whole = spelled(len(ids))
    if whole.lstrip() != text.lstrip():
        return None
    shift = len(text) - len(whole)
    offsets = [(0, 0)] * lead
    before = ""
    for index in range(lead, len(ids)):
        after = spelled(index + 1)
        # A token that ends inside a character decodes to U+FFFD; the next one starts there again.
        start = len(before.rstrip("\ufffd")) + shift
        offsets.append((max(start, 0), max(len(after) + shift, 0)))
        before = after
    return tuple(offsets)
