"""What a measurement gives: one row a probe, and means that never mix protocols."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import Any, Literal

import attrs

Protocol = Literal["tf_token", "gen_em", "gen_contains"]
Metric = Literal["reliability", "generalization", "locality", "portability"]


@attrs.frozen(kw_only=True)
class Row:
    """One probe, measured by one protocol.

    Attributes:
        request: Index of the request the probe belongs to.
        metric: What the probe stands for.
        probe: The probe's type within the metric, for example ``same_subject``; may be empty.
        protocol: ``tf_token``: share of answer tokens that are the argmax when the answer is
            teacher-forced (locality: that equal the argmax before the edit). ``gen_em``: 1 when
            greedy text up to its natural stop equals an answer after normalisation (locality:
            equals the text before the edit). ``gen_contains``: 1 when it contains an answer.
        prompt: The probe's prompt.
        expected: The answer that was scored.
        before: The score without the patch, 0 to 1; 1 by definition for locality.
        after: The score with the patch, 0 to 1.
        text_before: What the model said without the patch, where text was generated.
        text_after: What it said with the patch.
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


@attrs.frozen(kw_only=True)
class Score:
    """The mean of a metric over requests; within a request over its probes.

    Attributes:
        metric: The metric.
        probe: The probe type, or empty.
        protocol: How it was measured.
        before: Mean without the patch, 0 to 1.
        after: Mean with the patch, 0 to 1.
        n: Number of requests that have such probes.
    """

    metric: Metric
    probe: str
    protocol: Protocol
    before: float
    after: float
    n: int


@attrs.frozen
class Report:
    """Rows of one or more evaluations.

    Attributes:
        rows: One a probe and protocol.
    """

    rows: tuple[Row, ...]

    def scores(self) -> tuple[Score, ...]:
        """Return the means by metric, probe type and protocol."""
        groups: dict[tuple[Metric, str, Protocol], dict[int, list[Row]]] = defaultdict(dict)
        for row in self.rows:
            key = (row.metric, row.probe, row.protocol)
            groups[key].setdefault(row.request, []).append(row)
        return tuple(
            Score(
                metric=metric,
                probe=probe,
                protocol=protocol,
                before=fmean(fmean(r.before for r in rows) for rows in by_request.values()),
                after=fmean(fmean(r.after for r in rows) for rows in by_request.values()),
                n=len(by_request),
            )
            for (metric, probe, protocol), by_request in groups.items()
        )

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


def merge_reports(reports: Iterable[Report]) -> Report:
    """Put the rows of several evaluations together, renumbering their requests."""
    rows: list[Row] = []
    first = 0
    for report in reports:
        rows.extend(attrs.evolve(row, request=row.request + first) for row in report.rows)
        first += 1 + max((row.request for row in report.rows), default=-1)
    return Report(tuple(rows))
