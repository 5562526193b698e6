"""The metrics that ask probes: reliability, generalization, locality, portability.

Each probe is asked by teacher forcing and by free generation, because the two differ widely (a
method that scores 97 % by the first may score 38 % by the second).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import attrs

from editkit_core.metrics.ask import Ask, Forced, Greedy, Replies, agreement
from editkit_core.metrics.context import MetricContext
from editkit_core.metrics.judge import Case
from editkit_core.metrics.metric import MetricInfo
from editkit_core.metrics.report import Protocol, Row
from editkit_core.metrics.texts import contains, exact_match, normalise
from editkit_core.types import EditRequest, Probe

FORCED: tuple[Protocol, ...] = ("tf_token",)
GENERATED: tuple[Protocol, ...] = ("gen_em", "gen_contains", "gen_judge")
KEPT: tuple[Protocol, ...] = ("gen_em", "gen_judge")
Probes = Callable[[EditRequest, MetricContext], Iterable[tuple[str, Probe]]]
Scored = tuple[Protocol, float, float]


@attrs.frozen
class _Asked:
    """A probe, what was asked about it and what was replied."""

    kind: str
    probe: Probe
    forced: tuple[str, str]
    greedy: Greedy


@attrs.frozen
class _ProbeMetric:
    """Asks each probe for its first answer and for free text.

    Attributes:
        info: What the metric is.
        probes: Its probes of a request, by type; each has an answer.
    """

    info: MetricInfo
    probes: Probes

    def asks(self, request: EditRequest, context: MetricContext) -> Iterator[Ask]:
        """Ask by every protocol that is wanted."""
        for asked in self._asked(request, context):
            if context.wants(*FORCED):
                yield Forced(*asked.forced)
            if self._generates(context):
                yield asked.greedy

    def rows(
        self,
        index: int,
        request: EditRequest,
        before: Replies,
        after: Replies,
        context: MetricContext,
    ) -> Iterator[Row]:
        """Give one row a probe and protocol."""
        asked = list(self._asked(request, context))
        said: Sequence[tuple[str, str]] = [("", "")] * len(asked)
        if self._generates(context):
            said = [(before.text(one.greedy), after.text(one.greedy)) for one in asked]
        judged = self._judged(asked, said, context)
        for one, texts, verdict in zip(asked, said, judged, strict=True):
            for protocol, old, new in (*self._scores(one, before, after, texts, context), *verdict):
                yield Row(
                    request=index,
                    metric=self.info.name,
                    probe=one.kind,
                    protocol=protocol,
                    prompt=one.probe.prompt,
                    expected=one.probe.answers[0],
                    before=old,
                    after=new,
                    text_before=texts[0],
                    text_after=texts[1],
                )

    def _asked(self, request: EditRequest, context: MetricContext) -> Iterator[_Asked]:
        budget = context.budget(request)
        for kind, probe in self.probes(request, context):
            yield _Asked(
                kind,
                probe,
                (probe.prompt, probe.answers[0]),
                Greedy(probe.prompt, budget, probe.answers),
            )

    def _generates(self, context: MetricContext) -> bool:
        return context.wants(*(p for p in self.info.protocols if p in GENERATED))

    def _scores(
        self,
        one: _Asked,
        before: Replies,
        after: Replies,
        texts: tuple[str, str],
        context: MetricContext,
    ) -> Iterator[Scored]:
        raise NotImplementedError

    def _cases(
        self, asked: Sequence[_Asked], said: Sequence[tuple[str, str]]
    ) -> tuple[list[Case], list[Case]]:
        raise NotImplementedError

    def _judged(
        self, asked: Sequence[_Asked], said: Sequence[tuple[str, str]], context: MetricContext
    ) -> Sequence[Sequence[Scored]]:
        """What the judge says of each probe; one call a request, so that it can be parallel."""
        if not asked or context.judge is None or not context.wants("gen_judge"):
            return [()] * len(asked)
        old, new = self._cases(asked, said)
        verdicts = [float(verdict) for verdict in context.judge([*old, *new])]
        befores = verdicts[: len(old)] or [1.0] * len(asked)
        return [
            [("gen_judge", was, now)]
            for was, now in zip(befores, verdicts[len(old) :], strict=True)
        ]


@attrs.frozen
class Right(_ProbeMetric):
    """Does the model give the answer?"""

    def _scores(
        self,
        one: _Asked,
        before: Replies,
        after: Replies,
        texts: tuple[str, str],
        context: MetricContext,
    ) -> Iterator[Scored]:
        if context.wants("tf_token"):
            old, new = before.forced(*one.forced), after.forced(*one.forced)
            yield "tf_token", old.accuracy, new.accuracy
        answers = one.probe.answers
        if context.wants("gen_em"):
            yield (
                "gen_em",
                float(exact_match(texts[0], answers)),
                float(exact_match(texts[1], answers)),
            )
        if context.wants("gen_contains"):
            yield (
                "gen_contains",
                float(contains(texts[0], answers)),
                float(contains(texts[1], answers)),
            )

    def _cases(
        self, asked: Sequence[_Asked], said: Sequence[tuple[str, str]]
    ) -> tuple[list[Case], list[Case]]:
        pairs = list(zip(asked, said, strict=True))
        old = [Case(one.probe.prompt, one.probe.answers, texts[0]) for one, texts in pairs]
        new = [Case(one.probe.prompt, one.probe.answers, texts[1]) for one, texts in pairs]
        return old, new


@attrs.frozen
class Kept(_ProbeMetric):
    """Does the model say after the edit what it said before? Before is 1 by definition."""

    def _scores(
        self,
        one: _Asked,
        before: Replies,
        after: Replies,
        texts: tuple[str, str],
        context: MetricContext,
    ) -> Iterator[Scored]:
        if context.wants("tf_token"):
            old, new = before.forced(*one.forced), after.forced(*one.forced)
            yield "tf_token", 1.0, agreement(new.predicted, old.predicted)
        if context.wants("gen_em"):
            yield "gen_em", 1.0, float(normalise(texts[0]) == normalise(texts[1]))

    def _cases(
        self, asked: Sequence[_Asked], said: Sequence[tuple[str, str]]
    ) -> tuple[list[Case], list[Case]]:
        new = [
            Case(one.probe.prompt, (texts[0],), texts[1])
            for one, texts in zip(asked, said, strict=True)
        ]
        return [], new


def _edited(request: EditRequest, context: MetricContext) -> Iterator[tuple[str, Probe]]:
    yield "", Probe(request.text, (request.target_new,))


def _rephrased(request: EditRequest, context: MetricContext) -> Iterator[tuple[str, Probe]]:
    for text in request.paraphrase_texts:
        yield "", Probe(text, (request.target_new,))


def _by_type(groups: Mapping[str, tuple[Probe, ...]]) -> Iterator[tuple[str, Probe]]:
    for name, probes in groups.items():
        for probe in probes:
            yield name, probe


def _unrelated(request: EditRequest, context: MetricContext) -> Iterator[tuple[str, Probe]]:
    return _by_type(request.locality)


def _following(request: EditRequest, context: MetricContext) -> Iterator[tuple[str, Probe]]:
    return _by_type(request.portability)


_EASYEDIT = "EasyEdit (Wang et al. 2023, arXiv:2308.07269), §3"
_ACCURACY = (
    "tf_token: (1/T) Σ_t 1[argmax f'(·|x, y_<t) = y_t]; gen_em: 1[norm(greedy text) = norm(y)]; "
    "gen_contains: 1[norm(y) in norm(greedy text), whole words]; gen_judge: what the judge says"
)


def reliability() -> Right:
    """Does the model give the new answer to the edited prompt? Unit: share. `_ACCURACY` on x_e.

    Source: EasyEdit (arXiv:2308.07269), §3; free generation after arXiv:2502.11177.
    Differs: answers are never tokenised alone, and no token of prompt or padding is counted.
    """
    return Right(
        MetricInfo(
            name="reliability",
            title="The edited prompt gives the new answer",
            protocols=FORCED + GENERATED,
            source=_EASYEDIT,
            definition=f"{_ACCURACY}; x is the edit prompt, y the new answer.",
        ),
        _edited,
    )


def generalization() -> Right:
    """Do other phrasings give the new answer too? Unit: share.

    Source: EasyEdit (arXiv:2308.07269), §3.
    Differs: prefixes of the paraphrases are left as the data set has them.
    """
    return Right(
        MetricInfo(
            name="generalization",
            title="Other phrasings give the new answer",
            protocols=FORCED + GENERATED,
            source=_EASYEDIT,
            definition=f"{_ACCURACY}; x runs over the paraphrases, y is the new answer.",
            needs=("paraphrases",),
        ),
        _rephrased,
    )


def locality() -> Kept:
    """Does the model say about other things what it said before? Unit: share.

    Source: EasyEdit (arXiv:2308.07269), §3: agreement with the model before the edit; the ground
    truth only supplies the prefix y_<t.
    Differs: free generation is compared too, by equality of the normalised texts.
    """
    return Kept(
        MetricInfo(
            name="locality",
            title="Other prompts give what they gave before the edit",
            protocols=FORCED + KEPT,
            source=_EASYEDIT,
            definition=(
                "tf_token: (1/T) Σ_t 1[argmax f'(·|x, y_<t) = argmax f(·|x, y_<t)]; gen_em: "
                "1[norm(text of f') = norm(text of f)]; by type of probe. 1 before, by definition."
            ),
            needs=("locality",),
        ),
        _unrelated,
    )


def portability() -> Right:
    """Does the model draw conclusions from the new fact? Unit: share; by type of probe.

    Source: EasyEdit (arXiv:2308.07269), §3; Yao et al. 2023 (arXiv:2305.13172).
    """
    return Right(
        MetricInfo(
            name="portability",
            title="Prompts whose answer follows from the new fact give it",
            protocols=FORCED + GENERATED,
            source=f"{_EASYEDIT}; Yao et al. 2023 (arXiv:2305.13172)",
            definition=f"{_ACCURACY}; x, y run over the portability probes, by type.",
            needs=("portability",),
        ),
        _following,
    )
