"""Comparing texts: where a continuation stops, and when it counts as an answer. Without torch."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

__all__ = ["contains", "cut", "exact_match", "has_stopped", "normalise"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_STOP = re.compile(r"\n|[.!?](?=\s|$)")
_STOP_NOT_INITIAL = re.compile(
    r"\n|(?<!\b[A-Z])[.!?](?=\s|$)"
)  # goes on after "H." in "H. G. Wells"


def cut(text: str, answers: Sequence[str] = ()) -> str:
    """Return a continuation up to its natural stop, stripped.

    A stop inside one of the ``answers`` with which the text begins, as in "St. Louis", is skipped.
    """
    text = text.strip()
    stop = _stop(text, answers)
    return text[: stop.start()].strip() if stop else text


def has_stopped(text: str, answers: Sequence[str] = ()) -> bool:
    """Return whether `cut` gives the same for this text and for every longer one."""
    text = text.lstrip()
    if any(len(a) > len(text) and a.lower().startswith(text.lower()) for a in _stripped(answers)):
        return False  # it may yet become an answer with a stop inside
    stop = _stop(text, answers)
    return stop is not None and bool(text[stop.end() :] or stop.group() == "\n")


def _stop(text: str, answers: Sequence[str]) -> re.Match[str] | None:
    begun = [len(a) for a in _stripped(answers) if text.lower().startswith(a.lower())]
    return _STOP.search(text, max(begun) - 1) if begun else _STOP_NOT_INITIAL.search(text)


def _stripped(answers: Sequence[str]) -> list[str]:
    return [answer.strip() for answer in answers if answer.strip()]


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
