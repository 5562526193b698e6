"""Texts put before a prompt, so that an edit holds wherever the prompt stands.

Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", appendix E.5.
Differs: Seeded, and returned to the caller to be stored in the patch; the reference samples without
    a seed and keeps them in a global. Prepended as plain text, so braces need no escape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["sample_contexts"]

_TOP_K = 5
_STOPS = (".", "!", "?")


def sample_contexts(
    model: EditableModel,
    lengths: Sequence[tuple[int, int]] = ((5, 10), (10, 10)),
    *,
    seed: int,
) -> tuple[str, ...]:
    """Return the empty context and texts that the model itself begins a document with.

    Args:
        model: The model; sampled with top-k 5. The global random state is not touched.
        lengths: Pairs (tokens, how many texts of that length).
        seed: Seed of the sampling.

    Returns:
        ``""`` first, then texts that end in ". " (or another sentence stop and a space). A sample
        without a printable character is left out.
    """
    samples: list[str] = []
    for number, (tokens, count) in enumerate(lengths):
        if count:
            samples += model.generate(
                [""] * count,
                max_new_tokens=tokens,
                sample=True,
                top_k=_TOP_K,
                seed=seed + number,
            )
    return ("", *(_as_sentence(text) for text in samples if text.strip()))


def _as_sentence(text: str) -> str:
    line = " ".join(text.split())
    return f"{line} " if line.endswith(_STOPS) else f"{line}. "
