"""The two answers of a request as tokens: the one whose neurons are sought, and the new one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from editkit_core.errors import InvalidRequestError
from editkit_core.models.pairs import PairRow, pair_row
from editkit_core.types import EditRequest

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_kn.params import Answer


@attrs.frozen(kw_only=True)
class Answers:
    """What counts of a request's answers.

    Attributes:
        old: Tokens of the old answer whose embeddings are taken out.
        new: Tokens of the new answer whose embeddings are put in.
        first: Number of the first token of the old answer that counts.
        count: How many of its tokens count.
    """

    old: tuple[int, ...]
    new: tuple[int, ...]
    first: int
    count: int


@attrs.frozen(kw_only=True)
class Asked:
    """A text whose next token is known.

    Attributes:
        source: What the encoder reads; empty for a decoder.
        ids: What the decoder reads; its last token predicts.
        label: The next token.
    """

    source: tuple[int, ...]
    ids: tuple[int, ...]
    label: int


def answers_of(model: EditableModel, request: EditRequest, which: Answer) -> Answers:
    """Return the tokens that count.

    With ``first`` it is the first one in which the answers differ; what both begin with says
    nothing about either. Where one answer is the beginning of the other all tokens count.

    Raises:
        InvalidRequestError: ``target_true`` is missing or the same as ``target_new``.
        EmptyTargetError: An answer has no token of its own.
        PromptTooLongError: Prompt and answer do not fit the model's context.
    """
    if request.target_true is None:
        raise InvalidRequestError(
            f"KN needs to know what the model says now about {request.subject!r}: it looks for the "
            "neurons that say it. Give target_true.",
            subject=request.subject,
        )
    old = pair_row(model, request.text, request.target_true).target
    new = pair_row(model, request.text, request.target_new).target
    if old == new:
        raise InvalidRequestError(
            f"target_new and target_true of {request.subject!r} are both {request.target_new!r}, "
            "so there is nothing to change. Give another target_new.",
            subject=request.subject,
        )
    differing = [place for place, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
    if which == "mean" or not differing:
        return Answers(old=old, new=new, first=0, count=len(old))
    place = differing[0]
    return Answers(old=(old[place],), new=(new[place],), first=place, count=1)


def asked(model: EditableModel, prompt: str, answer: str, which: Answers) -> Iterator[Asked]:
    """Yield a text for each token of the old answer that counts.

    After another prompt the same answer may have other tokens; their numbers are kept to.
    """
    row = pair_row(model, prompt, answer)
    last = len(row.target) - 1
    for number in range(min(which.first, last), min(which.first + which.count, last + 1)):
        yield _before(row, number)


def _before(row: PairRow, number: int) -> Asked:
    place = row.first + number
    return Asked(source=row.source, ids=row.ids[:place], label=row.ids[place])
