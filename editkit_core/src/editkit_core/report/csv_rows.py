"""The report as CSV: one line a score, every number in full."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from editkit_core.report.document import Document, Group, Member
from editkit_core.report.intervals import Interval
from editkit_core.report.scores import Key, Score

__all__ = ["COLUMNS", "render_csv"]

COLUMNS = (
    "run",
    "method",
    "model",
    "dataset",
    "dataset_digest",
    "target_policy",
    "scenario",
    "stage",
    "relation",
    "metric",
    "probe",
    "protocol",
    "unit",
    "higher_is_better",
    "n",
    "before",
    "before_low",
    "before_high",
    "after",
    "after_low",
    "after_high",
    "paper",
    "paper_source",
)
# A spreadsheet would run a cell that begins so.
_ACTIVE = ("=", "+", "-", "@", "\t", "\r")


def render_csv(document: Document) -> str:
    """Return every score by stage, then those of the last stage by relation.

    Texts that a spreadsheet would take for a formula get an apostrophe in front.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for group in document.groups:
        for member in group.members:
            writer.writerows(_lines(group, member))
    return buffer.getvalue()


def _lines(group: Group, member: Member) -> Iterator[list[str]]:
    for stage, scores in member.scores.items():
        for key, score in scores.items():
            yield _line(group, member, stage, "", key, score)
    for one in member.relations:
        for key, score in one.scores.items():
            yield _line(group, member, member.run.last_stage, one.relation, key, score)


def _line(
    group: Group, member: Member, stage: str, relation: str, key: Key, score: Score
) -> list[str]:
    run = member.run
    beside = not relation and stage == run.last_stage
    papers = member.published.get(key, ()) if beside else ()
    texts = (
        run.folder,
        run.method,
        group.model,
        group.data,
        group.digest,
        group.target_policy,
        group.scenario,
        stage,
        relation,
        key.metric,
        key.probe,
        key.protocol,
        score.unit,
    )
    better = {True: "yes", False: "no", None: ""}[score.higher_is_better]
    return [
        *map(_inert, texts),
        better,
        str(score.after.n),
        *_numbers(score.before),
        *_numbers(score.after),
        "; ".join(repr(paper.value) for paper in papers),
        _inert("; ".join(paper.source for paper in papers)),
    ]


def _numbers(interval: Interval) -> list[str]:
    ends = (interval.value, interval.low, interval.high)
    return ["" if end is None else repr(end) for end in ends]


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(_ACTIVE) else text
