"""Where edits leak: other facts about the subject, and subjects that share a part of its name.

A request's own locality probes of type ``same_subject`` and ``near_name`` are asked where it has
them. Otherwise the other requests of the run serve: their prompts about the same subject, and their
prompts about a subject that shares a word with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

from editkit_core.metrics.context import MetricContext
from editkit_core.metrics.metric import MetricInfo
from editkit_core.metrics.probes import FORCED, KEPT, Kept
from editkit_core.types import EditRequest, Probe

SAME_SUBJECT = "same_subject"
NEAR_NAME = "near_name"
MOST_PROBES = 10
Fits = Callable[[EditRequest, EditRequest], bool]
_WORD = re.compile(r"\w{3,}")
_SMALL = frozenset({"and", "der", "des", "for", "from", "las", "los", "of", "the", "van", "von"})
_KEPT = (
    "tf_token: (1/T) Σ_t 1[argmax f'(·|x, y_<t) = argmax f(·|x, y_<t)]; gen_em: 1[norm(text of f') "
    "= norm(text of f)]; 1 before, by definition"
)
_SOURCE = "Agreement as in EasyEdit's locality (arXiv:2308.07269), on probes of our own choice"


def _of_the_subject(request: EditRequest, context: MetricContext) -> Iterator[tuple[str, Probe]]:
    own = request.locality.get(SAME_SUBJECT)
    yield from _named(own or _borrowed(request, context, _same_subject))


def _of_near_names(request: EditRequest, context: MetricContext) -> Iterator[tuple[str, Probe]]:
    own = request.locality.get(NEAR_NAME)
    yield from _named(own or _borrowed(request, context, _shares_a_word))


def _named(probes: tuple[Probe, ...]) -> Iterator[tuple[str, Probe]]:
    return (("", probe) for probe in probes)


def _borrowed(request: EditRequest, context: MetricContext, fits: Fits) -> tuple[Probe, ...]:
    """Prompts of other requests with what is true there; none whose answer the edit changes."""
    probes = (
        Probe(other.text, (other.target_true,))
        for other in context.requests
        if other.target_true is not None and fits(request, other) and other.text != request.text
    )
    return tuple(islice(dict.fromkeys(probes), MOST_PROBES))


def _same_subject(request: EditRequest, other: EditRequest) -> bool:
    same = request.subject.casefold() == other.subject.casefold()
    return same and request.template.casefold() != other.template.casefold()


def _shares_a_word(request: EditRequest, other: EditRequest) -> bool:
    different = request.subject.casefold() != other.subject.casefold()
    return different and bool(name_words(request.subject) & name_words(other.subject))


def name_words(subject: str) -> frozenset[str]:
    """Return the words of a name that can mix it up with another: three letters or more."""
    return frozenset(_WORD.findall(subject.casefold())) - _SMALL


def same_subject_specificity() -> Kept:
    """Does the model say what it said about the subject's other facts? Unit: share.

    Source: agreement with the model before the edit as in EasyEdit's locality (arXiv:2308.07269).
    Differs: papers ask about other subjects only, where a ROME edit keeps 95 %; of these it keeps
    far less.
    """
    return Kept(
        MetricInfo(
            name="same_subject_specificity",
            title="Other facts about the subject stay",
            protocols=FORCED + KEPT,
            source=_SOURCE,
            definition=f"{_KEPT}; x over prompts with the same subject and another relation.",
            needs=("locality.same_subject, or other requests about the subject",),
        ),
        _of_the_subject,
    )


def near_name_locality() -> Kept:
    """Does the model say what it said about subjects with a similar name? Unit: share.

    Source: agreement with the model before the edit as in EasyEdit's locality (arXiv:2308.07269).
    Differs: the probes are chosen by a shared word of the subjects' names, of three letters or
    more and not a small word.
    """
    return Kept(
        MetricInfo(
            name="near_name_locality",
            title="Subjects with a similar name keep their facts",
            protocols=FORCED + KEPT,
            source=_SOURCE,
            definition=f"{_KEPT}; x over prompts whose subject shares a word with the edited one.",
            needs=("locality.near_name, or other requests about such subjects",),
        ),
        _of_near_names,
    )
