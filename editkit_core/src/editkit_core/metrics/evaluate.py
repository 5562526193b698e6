"""The core's evaluation of a patch: reliability, generalization, locality and portability.

Every probe is asked before and after, by teacher forcing and by free generation, because the two
differ widely (a method that scores 97 % by the first may score 38 % by the second). Locality is
agreement with the model before the edit, not with any ground truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from editkit_core.metrics.report import Metric, Protocol, Report, Row
from editkit_core.metrics.scoring import (
    Forced,
    agreement,
    contains,
    exact_match,
    generated,
    normalise,
    teacher_forced,
)
from editkit_core.types import EditContext, EditRequest, Probe

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch


@attrs.frozen(kw_only=True)
class _Ask:
    request: int
    metric: Metric
    probe: str
    prompt: str
    answers: tuple[str, ...]


@attrs.frozen
class _Answers:
    forced: list[Forced]
    texts: list[str]


def evaluate_patch(
    model: EditableModel,
    requests: Sequence[EditRequest],
    patch: Patch,
    *,
    context: EditContext | None = None,
) -> Report:
    """Measure a model before and after a patch.

    Args:
        model: The model without the patch; it is left without it.
        requests: What was edited, with their paraphrases and probes.
        patch: The patch to measure.
        context: Progress goes here.

    Returns:
        One row a probe and protocol (``tf_token``, ``gen_em``, ``gen_contains``).
    """
    from editkit_core.patch.apply import apply_patch

    progress = (context or EditContext()).progress
    progress.start("evaluating", 2)
    try:
        asks = _with_answers(model, list(_asks(requests)))
        before = _ask_all(model, asks)
        progress.advance()
        with apply_patch(model, patch):
            after = _ask_all(model, asks)
        progress.advance()
    finally:
        progress.finish()
    return Report(tuple(_rows(asks, before, after)))


def _asks(requests: Sequence[EditRequest]) -> Iterator[_Ask]:
    for i, request in enumerate(requests):
        new = (request.target_new,)
        yield _Ask(request=i, metric="reliability", probe="", prompt=request.text, answers=new)
        for text in request.paraphrase_texts:
            yield _Ask(request=i, metric="generalization", probe="", prompt=text, answers=new)
        yield from _probes(i, "locality", request.locality)
        yield from _probes(i, "portability", request.portability)


def _probes(i: int, metric: Metric, groups: Mapping[str, tuple[Probe, ...]]) -> Iterator[_Ask]:
    for name, probes in groups.items():
        for probe in probes:
            yield _Ask(
                request=i, metric=metric, probe=name, prompt=probe.prompt, answers=probe.answers
            )


def _with_answers(model: EditableModel, asks: list[_Ask]) -> list[_Ask]:
    """Give a probe without answers what the unedited model says, so that it can be forced."""
    empty = [i for i, ask in enumerate(asks) if not ask.answers]
    texts = generated(model, [asks[i].prompt for i in empty]) if empty else []
    filled = list(asks)
    for i, text in zip(empty, texts, strict=True):
        filled[i] = attrs.evolve(asks[i], answers=(text or ".",))
    return filled


def _ask_all(model: EditableModel, asks: Sequence[_Ask]) -> _Answers:
    forced = teacher_forced(model, [(ask.prompt, ask.answers[0]) for ask in asks])
    longest = max((len(f.target) for f in forced), default=0)
    texts = generated(
        model,
        [ask.prompt for ask in asks],
        max_new_tokens=longest + 8,
        answers=[ask.answers for ask in asks],
    )
    return _Answers(forced, texts)


def _rows(asks: Sequence[_Ask], before: _Answers, after: _Answers) -> Iterator[Row]:
    for i, ask in enumerate(asks):
        old, new = before.texts[i], after.texts[i]
        scores = (
            _kept(i, before, after)
            if ask.metric == "locality"
            else _right(i, ask.answers, before, after)
        )
        for protocol, score_before, score_after in scores:
            yield Row(
                request=ask.request,
                metric=ask.metric,
                probe=ask.probe,
                protocol=protocol,
                prompt=ask.prompt,
                expected=ask.answers[0],
                before=score_before,
                after=score_after,
                text_before=old,
                text_after=new,
            )


def _kept(i: int, before: _Answers, after: _Answers) -> Iterator[tuple[Protocol, float, float]]:
    """Locality: does the model say after the edit what it said before?"""
    yield "tf_token", 1.0, agreement(after.forced[i].predicted, before.forced[i].predicted)
    yield "gen_em", 1.0, float(normalise(before.texts[i]) == normalise(after.texts[i]))


def _right(
    i: int, answers: tuple[str, ...], before: _Answers, after: _Answers
) -> Iterator[tuple[Protocol, float, float]]:
    """All other metrics: does the model give the answer?"""
    old, new = before.texts[i], after.texts[i]
    yield "tf_token", before.forced[i].accuracy, after.forced[i].accuracy
    yield "gen_em", float(exact_match(old, answers)), float(exact_match(new, answers))
    yield "gen_contains", float(contains(old, answers)), float(contains(new, answers))
