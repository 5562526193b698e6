"""Greedy continuations of plain prompts, and how texts are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editkit_core.metrics.ask import Greedy
from editkit_core.metrics.texts import contains, cut, exact_match, normalise

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["contains", "cut", "exact_match", "generated", "normalise"]


def generated(
    model: EditableModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    answers: Sequence[Sequence[str]] | None = None,
) -> list[str]:
    """Continue prompts greedily and cut each at its natural stop.

    Args:
        model: The model as it is now.
        prompts: Plain texts.
        max_new_tokens: Tokens before the cut.
        answers: The answers each prompt allows; a stop inside one of them is not a stop.

    Returns:
        The continuations, each up to the end-of-text token, a newline, or the end of a sentence.
    """
    from editkit_core.metrics.engine import answer

    allowed: Sequence[Sequence[str]] = [()] * len(prompts) if answers is None else answers
    asks = [
        Greedy(prompt, max_new_tokens, tuple(some))
        for prompt, some in zip(prompts, allowed, strict=True)
    ]
    replies = answer(model, asks)
    return [replies.text(ask) for ask in asks]
