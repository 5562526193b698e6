"""Retention: what earlier edits still score as more of them are made."""

from __future__ import annotations

import attrs

from editkit_core.bench.scenario import AFTER_ALL, AFTER_EDIT
from editkit_core.report.intervals import Interval
from editkit_core.report.runs import ReportedRun, checkpoint_size
from editkit_core.report.scores import Key, score_table

__all__ = ["Curve", "Point", "curves_of"]


@attrs.frozen(kw_only=True)
class Point:
    """The score of the edits made so far.

    Attributes:
        edits: How many are on the model.
        score: Their mean.
    """

    edits: int
    score: Interval


@attrs.frozen(kw_only=True)
class Curve:
    """How one score of a run goes on.

    Attributes:
        key: What the score is.
        unit: Its unit.
        points: By number of edits.
        at_once: The score right after each edit, before later ones; None if not measured.
    """

    key: Key
    unit: str
    points: tuple[Point, ...]
    at_once: Interval | None


def curves_of(run: ReportedRun, *, seed: int = 0) -> tuple[Curve, ...]:
    """Return the curves of a run; none where it was not measured with several numbers of edits."""
    measured = {
        stage: {score.key: score for score in score_table(run.rows(stage)).scores(seed=seed)}
        for stage in run.stages
    }
    at_once = measured.pop(AFTER_EDIT, {})
    points: dict[Key, dict[int, Interval]] = {}
    units: dict[Key, str] = {}
    for stage, scores in measured.items():
        edits = _edits(run, stage)
        for key, score in scores.items():
            if edits is not None:
                points.setdefault(key, {})[edits] = score.after
                units[key] = score.unit
    return tuple(
        Curve(
            key=key,
            unit=units[key],
            points=tuple(Point(edits=n, score=by_edits[n]) for n in sorted(by_edits)),
            at_once=at_once[key].after if key in at_once else None,
        )
        for key, by_edits in points.items()
        if len(by_edits) > 1
    )


def _edits(run: ReportedRun, stage: str) -> int | None:
    """Return how many edits are on the model in a stage."""
    if stage != AFTER_ALL:
        return checkpoint_size(stage)
    by_sequence: dict[int, int] = {}
    for unit in run.run.of_stage(AFTER_ALL):
        by_sequence[unit.sequence] = by_sequence.get(unit.sequence, 0) + len(unit.indices)
    return max(by_sequence.values(), default=None)
