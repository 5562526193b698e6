"""What a measurement gives: one row a probe, and means that never mix protocols."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import attrs

if TYPE_CHECKING:
    from editkit_core.metrics.metric import DerivedMetric

Protocol = Literal[
    "tf_token",
    "tf_contrastive",
    "gen_em",
    "gen_contains",
    "gen_judge",
    "gen_sample",
    "text",
    "run",
]
Unit = Literal["share", "nat", "bits", "s", "bytes", "points"]
UNITS: tuple[Unit, ...] = get_args(Unit)
Metric: TypeAlias = str


@attrs.frozen(kw_only=True)
class Row:
    """One probe, measured by one protocol.

    Attributes:
        request: Index of the request the probe belongs to.
        metric: The metric's registered name.
        probe: The probe's type within the metric, for example ``same_subject``; may be empty.
        protocol: ``tf_token``: share of answer tokens that are the argmax when the answer is
            teacher-forced (locality: that equal the argmax before the edit). ``tf_contrastive``:
            which of two answers is likelier, or by how much. ``gen_em``: 1 when greedy text up to
            its natural stop equals an answer after normalisation (locality: equals the text before
            the edit). ``gen_contains``: 1 when it contains an answer. ``gen_judge``: 1 when a judge
            says that it gives the answer. ``gen_sample``: of text sampled with a seed. ``text``: of
            a text corpus. ``run``: of the whole run.
        prompt: The probe's prompt.
        expected: The answer that was scored.
        before: The score without the patch; 1 by definition for locality.
        after: The score with the patch.
        text_before: What the model said without the patch, where text was generated.
        text_after: What it said with the patch.
        unit: Of the scores.
        higher_is_better: None when neither direction is better in itself.
    """

    request: int
    metric: Metric
    probe: str = ""
    protocol: Protocol
    prompt: str
    expected: str
    before: float
    after: float
    text_before: str = ""
    text_after: str = ""
    unit: Unit = "share"
    higher_is_better: bool | None = True


@attrs.frozen(kw_only=True)
class Score:
    """The mean of a metric over requests; within a request over its probes.

    Attributes:
        metric: The metric.
        probe: The probe type, or empty.
        protocol: How it was measured.
        before: Mean without the patch.
        after: Mean with the patch.
        n: Number of requests that have such probes.
        unit: Of the means.
        higher_is_better: None when neither direction is better in itself.
    """

    metric: Metric
    probe: str
    protocol: Protocol
    before: float
    after: float
    n: int
    unit: Unit = "share"
    higher_is_better: bool | None = True


@attrs.frozen
class Report:
    """Rows of one or more evaluations.

    Attributes:
        rows: One a probe and protocol.
    """

    rows: tuple[Row, ...]

    def scores(self, derived: Sequence[DerivedMetric] = ()) -> tuple[Score, ...]:
        """Return the means by metric, probe type and protocol.

        Args:
            derived: Metrics to compute from the means of others; one whose parts were not all
                measured is left out.
        """
        groups: dict[tuple[Metric, str, Protocol], dict[int, list[Row]]] = defaultdict(dict)
        for row in self.rows:
            key = (row.metric, row.probe, row.protocol)
            groups[key].setdefault(row.request, []).append(row)
        means = tuple(_mean(key, by_request) for key, by_request in groups.items())
        return means + tuple(_derived(metric, means) for metric in derived if _has(metric, means))

    def score(self, metric: Metric, probe: str = "", protocol: Protocol = "tf_token") -> Score:
        """Return one mean.

        Raises:
            KeyError: Nothing was measured under these names.
        """
        for score in self.scores():
            if (score.metric, score.probe, score.protocol) == (metric, probe, protocol):
                return score
        raise KeyError((metric, probe, protocol))

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """Return scores and rows as plain JSON values."""
        return {
            "scores": [attrs.asdict(score) for score in self.scores()],
            "rows": [attrs.asdict(row) for row in self.rows],
        }


def _mean(key: tuple[Metric, str, Protocol], by_request: Mapping[int, list[Row]]) -> Score:
    first = next(iter(by_request.values()))[0]
    return Score(
        metric=key[0],
        probe=key[1],
        protocol=key[2],
        before=fmean(fmean(row.before for row in rows) for rows in by_request.values()),
        after=fmean(fmean(row.after for row in rows) for rows in by_request.values()),
        n=len(by_request),
        unit=first.unit,
        higher_is_better=first.higher_is_better,
    )


def _parts(metric: DerivedMetric, means: Sequence[Score]) -> list[Score]:
    found = {(s.metric, s.protocol): s for s in means if not s.probe}
    wanted = ((part, protocol) for part in metric.parts for protocol in metric.info.protocols)
    return [found[key] for key in wanted if key in found]


def _has(metric: DerivedMetric, means: Sequence[Score]) -> bool:
    return len(_parts(metric, means)) == len(metric.parts)


def _derived(metric: DerivedMetric, means: Sequence[Score]) -> Score:
    parts = _parts(metric, means)
    return Score(
        metric=metric.info.name,
        probe="",
        protocol=parts[0].protocol,
        before=metric.combine([part.before for part in parts]),
        after=metric.combine([part.after for part in parts]),
        n=min(part.n for part in parts),
        unit=metric.info.unit,
        higher_is_better=metric.info.higher_is_better,
    )


def _texts(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


@attrs.frozen(kw_only=True)
class Facts:
    """What is true of every row of a measurement; stored once a record, not once a row.

    Attributes:
        target_policy: Which of a data set's answers the target is, for example ``alt``.
        seed: Seed of the edit and of sampling.
        model: Fingerprint of the model before the edit.
        patches: Ids of the patches the second score was measured with.
        versions: Versions of the software, by distribution.
    """

    target_policy: str = ""
    seed: int = 0
    model: str = ""
    patches: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    versions: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Measured:
    """Rows and what is true of all of them: one record of a run.

    Attributes:
        rows: One a probe and protocol.
        facts: What they share.
    """

    rows: tuple[Row, ...]
    facts: Facts

    def to_record(self) -> dict[str, Any]:  # Any: JSON values
        """Return the record as plain JSON values; fields of a row that say nothing are left out."""
        return {
            "facts": attrs.asdict(self.facts),
            "rows": [attrs.asdict(row, filter=_says_something) for row in self.rows],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Measured:  # Any: JSON values
        """Return what `to_record` was called on; other names in the record are ignored.

        Raises:
            TypeError, KeyError: It is not such a record.
        """
        rows = tuple(Row(**row) for row in record["rows"])
        return cls(rows, Facts(**record["facts"]))

    def joined(self) -> Iterator[dict[str, Any]]:  # Any: JSON values
        """Yield each row with the facts, as plain JSON values."""
        facts = attrs.asdict(self.facts)
        for row in self.rows:
            yield {**attrs.asdict(row), **facts}


def _says_something(field: attrs.Attribute[Any], value: Any) -> bool:  # Any: of any class
    return field.default is attrs.NOTHING or value != field.default


def merge_reports(reports: Iterable[Report]) -> Report:
    """Put the rows of several evaluations together, renumbering their requests."""
    rows: list[Row] = []
    first = 0
    for report in reports:
        rows.extend(attrs.evolve(row, request=row.request + first) for row in report.rows)
        first += 1 + max((row.request for row in report.rows), default=-1)
    return Report(tuple(rows))
