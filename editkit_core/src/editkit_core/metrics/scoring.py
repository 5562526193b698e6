"""Reading a model's answers: by teacher forcing and by greedy generation.

Both see the prompt as it is and the answer joined to it by the one join rule of
:mod:`editkit_core.models.text`, so a target is never tokenised alone.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from editkit_core.models.text import encode_pair, pad_batch

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

BATCH_ROWS = 32
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_STOP = re.compile(r"\n|[.!?](?=\s|$)")
_STOP_NOT_INITIAL = re.compile(
    r"\n|(?<!\b[A-Z])[.!?](?=\s|$)"
)  # goes on after "H." in "H. G. Wells"


@attrs.frozen
class Forced:
    """Argmax predictions at the positions of a teacher-forced answer.

    Attributes:
        predicted: Token ids the model puts first, one an answer token.
        target: The answer's token ids.
    """

    predicted: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """Share of answer tokens predicted right, 0 to 1."""
        return agreement(self.predicted, self.target)


def agreement(left: Sequence[int], right: Sequence[int]) -> float:
    """Return the share of positions at which two equally long sequences agree, 0 to 1."""
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(right)


def teacher_forced(
    model: EditableModel, pairs: Sequence[tuple[str, str]], *, rows: int = BATCH_ROWS
) -> list[Forced]:
    """Score answers by teacher forcing, in batches of similar length.

    Args:
        model: The model as it is now.
        pairs: (prompt, answer) texts.
        rows: Rows a forward pass.

    Returns:
        One :class:`Forced` a pair, in the order given.
    """
    encoded = [encode_pair(model.tokenizer, prompt, answer) for prompt, answer in pairs]
    for (prompt, _), pair in zip(pairs, encoded, strict=True):
        model.check_length(len(pair.encoded.ids), f"the prompt {prompt[:60]!r} with its answer")
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].encoded.ids))
    results: list[Forced | None] = [None] * len(encoded)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        batch = pad_batch(
            [encoded[i].encoded.ids for i in chosen], model.pad_id, device=model.device
        )
        best = model.logits(batch).argmax(dim=-1).tolist()  # (rows, length)
        for row, i in enumerate(chosen):
            pair = encoded[i]
            first = batch.index(row, pair.n_prompt - 1)  # it predicts the first answer token
            predicted = best[row][first : first + len(pair.target_ids)]
            results[i] = Forced(tuple(predicted), tuple(pair.target_ids))
    return [result for result in results if result is not None]


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
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH_ROWS):
        texts += model.generate(prompts[start : start + BATCH_ROWS], max_new_tokens=max_new_tokens)
    allowed: Sequence[Sequence[str]] = [()] * len(texts) if answers is None else answers
    return [cut(text, some) for text, some in zip(texts, allowed, strict=True)]


def cut(text: str, answers: Sequence[str] = ()) -> str:
    """Return a continuation up to its natural stop, stripped.

    A stop inside one of the ``answers`` with which the text begins, as in "St. Louis", is skipped.
    """
    text = text.strip()
    begun = [len(a) for a in map(str.strip, answers) if a and text.lower().startswith(a.lower())]
    stop = _STOP.search(text, max(begun) - 1) if begun else _STOP_NOT_INITIAL.search(text)
    return text[: stop.start()].strip() if stop else text


def normalise(text: str) -> str:
    """Lower-case; drop punctuation, English articles and extra spaces (the SQuAD convention)."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Return whether the normalised text equals one of the normalised answers."""
    return normalise(text) in {normalise(answer) for answer in answers}


def contains(text: str, answers: Sequence[str]) -> bool:
    """Return whether the normalised text contains one of the normalised answers as whole words."""
    padded = f" {normalise(text)} "
    return any(f" {normalise(answer)} " in padded for answer in answers)
