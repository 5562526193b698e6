"""Keys: the inputs of an edited weight at given tokens.

Legend: n: texts; d_in: width of a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editkit_core.errors import NonFiniteEditError
from editkit_core.models.text import EncodedPair, position
from editkit_core.numerics.states import states_at
from editkit_core.types import EditRequest, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = [
    "before_mention",
    "context_pairs",
    "edited_position",
    "keys_at",
    "mention_keys",
    "subject_keys",
]


def context_pairs(
    model: EditableModel, request: EditRequest, contexts: Sequence[str]
) -> list[EncodedPair]:
    """Return prompt and target encoded after each context.

    Raises:
        PromptTooLongError: One does not fit the model's context.
        EmptyTargetError: The target has no token of its own.
    """
    pairs = [model.encode_pair(text + request.text, request.target_new) for text in contexts]
    for pair in pairs:
        model.check_length(len(pair.ids), f"the prompt {pair.encoded.text[:60]!r} with its target")
    return pairs


def edited_position(pair: EncodedPair, request: EditRequest, site: Site, context: str) -> int:
    """Return the index of the token whose state is read and written, in a pair after a context."""
    start, end = request.subject_span
    chars = (start + len(context), end + len(context))
    return min(pair.position(chars, site.token), pair.n_prompt - 1)


def subject_keys(
    model: EditableModel, site: Site, request: EditRequest, contexts: Sequence[str]
) -> Tensor:
    """Return the key of a request after each context, ``(contexts, d_in)`` float64 on the CPU.

    Raises:
        PromptTooLongError: A prompt does not fit the model's context.
        NonFiniteEditError: A key is not finite.
    """
    pairs = context_pairs(model, request, contexts)
    return keys_at(
        model,
        site,
        [
            (pair.ids, edited_position(pair, request, site, context))
            for pair, context in zip(pairs, contexts, strict=True)
        ],
    )


def mention_keys(model: EditableModel, site: Site, subject: str, contexts: Sequence[str]) -> Tensor:
    """Return the key of a subject named right after each context, with no prompt about it.

    A context's closing period is dropped, so that the subject stands within a sentence: keys of
    such mentions are what other phrasings have in common, whatever the prompt says.

    Args:
        model: The model; it is only read.
        site: Where the key is read, at the subject's last token.
        subject: The subject.
        contexts: Texts put before it; the empty one gives the subject alone.

    Returns:
        ``(contexts, d_in)`` float64 on the CPU.

    Raises:
        PromptTooLongError: A text does not fit the model's context.
        NonFiniteEditError: A key is not finite.
    """
    places = []
    for context in contexts:
        before = before_mention(context)
        encoded = model.encode(before + subject)
        model.check_length(len(encoded.ids), f"the text {encoded.text[:60]!r}")
        span = (len(before), len(encoded.text))
        places.append((encoded.ids, position(encoded, span, "subject_last")))
    return keys_at(model, site, places)


def before_mention(context: str) -> str:
    """Return a context without its closing period, so that a name can go on its sentence."""
    open_end = context.rstrip().removesuffix(".").rstrip()
    return f"{open_end} " if open_end else ""


def keys_at(
    model: EditableModel, site: Site, places: Sequence[tuple[Sequence[int], int]]
) -> Tensor:
    """Return the inputs of the site's module, running the model up to there only.

    Args:
        model: The model; it is only read.
        site: Where; ``site.token`` plays no part.
        places: Token ids, without padding, and the index of the token to read. What comes after
            that token is not run: in a causal model it cannot matter.

    Returns:
        ``(n, d_in)`` float64 on the CPU, in the order of ``places``.

    Raises:
        NonFiniteEditError: A key is not finite.
    """
    stacked = states_at(model, site.module, places, inputs=True)
    if not bool(torch.isfinite(stacked).all()):
        raise NonFiniteEditError(
            f"A key at {site.module} is not finite. Load the model in float32.", module=site.module
        )
    return stacked
