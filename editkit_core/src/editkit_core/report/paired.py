"""Two runs against each other: differences over the requests that both have.

Every difference is of one request with itself, so that hard and easy requests cancel; that tells
two methods apart with far fewer requests than their two intervals would.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from editkit_core.errors import InvalidParameterError
from editkit_core.metrics.metric import DerivedMetric
from editkit_core.report.catalogue import Catalogue
from editkit_core.report.intervals import (
    FloatArray,
    Interval,
    combined_interval,
    paired_interval,
)
from editkit_core.report.runs import ReportedRun
from editkit_core.report.scores import Key, ScoreTable, score_table

__all__ = ["Comparison", "Difference", "compare_runs"]


@attrs.frozen(kw_only=True)
class Difference:
    """How one score of the second run differs from the first's.

    Attributes:
        stage: When it was measured.
        key: What it is of.
        unit: Of all three.
        higher_is_better: None when neither direction is better in itself.
        first: The first run's mean over the requests that both have.
        second: The second's.
        difference: second - first, with its interval over the pairs.
    """

    stage: str
    key: Key
    unit: str
    higher_is_better: bool | None
    first: float
    second: float
    difference: Interval

    @property
    def better(self) -> str | None:
        """``a`` or ``b`` if the interval excludes 0 and a direction is better; else None."""
        if self.higher_is_better is None or not self.difference.excludes_zero:
            return None
        return "b" if (self.difference.value > 0) == self.higher_is_better else "a"


@attrs.frozen(kw_only=True)
class Comparison:
    """Two runs.

    Attributes:
        first: The first run.
        second: The second run.
        requests: How many requests both have.
        only_first: How many the first alone has.
        only_second: How many the second alone has.
        differences: By stage and score.
        unmatched: What only one run measured: its letter, the stage and the score.
        remarks: What a reader must know.
    """

    first: ReportedRun
    second: ReportedRun
    requests: int
    only_first: int
    only_second: int
    differences: tuple[Difference, ...]
    unmatched: tuple[tuple[str, str, Key], ...]
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """Return the comparison as plain JSON values."""
        return {
            "a": _about(self.first),
            "b": _about(self.second),
            "requests": self.requests,
            "only_a": self.only_first,
            "only_b": self.only_second,
            "differences": [_plain(one) for one in self.differences],
            "unmatched": [
                {"run": run, "stage": stage, **key._asdict()} for run, stage, key in self.unmatched
            ],
            "remarks": list(self.remarks),
        }


def compare_runs(
    first: ReportedRun,
    second: ReportedRun,
    *,
    protocols: Collection[str] = (),
    catalogue: Catalogue | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare two runs over the requests that both have.

    Args:
        first: The one that is compared with.
        second: The one whose gain or loss is told.
        protocols: The only protocols to compare; empty means all, which must be the same in both.
        catalogue: What the metrics are; None asks the core and the plugins.
        seed: Of the bootstrap.

    Raises:
        InvalidParameterError: Data set, wanted answers, scenario or protocols differ, or no
            request is in both.
    """
    catalogue = catalogue or Catalogue.load()
    _refuse_different(first, second, protocols)
    mine, theirs = (_measured(run) for run in (first, second))
    shared = {name: number for number, name in enumerate(sorted(mine & theirs))}
    if not shared:
        raise InvalidParameterError(
            f"No request is in both {first.folder} and {second.folder}. Run them with the same "
            "--limit and --seed.",
        )
    differences: list[Difference] = []
    unmatched: list[tuple[str, str, Key]] = []
    for stage in dict.fromkeys((*first.stages, *second.stages)):
        one, two = (_table(run, stage, shared, protocols) for run in (first, second))
        for letter, own, other in (("a", one, two), ("b", two, one)):
            unmatched += [(letter, stage, key) for key in own.keys if key not in other.keys]
        differences += _differences(stage, one, two, catalogue, seed)
    return Comparison(
        first=first,
        second=second,
        requests=len(shared),
        only_first=len(mine - theirs),
        only_second=len(theirs - mine),
        differences=tuple(differences),
        unmatched=tuple(unmatched),
        remarks=tuple(_remarks(first, second)),
    )


def _refuse_different(first: ReportedRun, second: ReportedRun, protocols: Collection[str]) -> None:
    measured = [_protocols(run, protocols) for run in (first, second)]
    for what, one, two in (
        ("data set digest", first.data.get("digest"), second.data.get("digest")),
        ("target policy", first.target_policy, second.target_policy),
        ("scenario", first.scenario, second.scenario),
        ("protocols", *(", ".join(sorted(found)) or "none" for found in measured)),
    ):
        if one != two:
            remedy = (
                "Name those to compare with --protocol."
                if what == "protocols"
                else "Compare runs of the same data set, answers and scenario."
            )
            raise InvalidParameterError(
                f"The runs cannot be compared: their {what} differs. {first.folder} has "
                f"{one or 'none'}, {second.folder} has {two or 'none'}. {remedy}",
                what=what,
                first=one,
                second=two,
            )
    if not measured[0]:
        raise InvalidParameterError(
            f"Neither {first.folder} nor {second.folder} has scores"
            f"{' of ' + ', '.join(sorted(protocols)) if protocols else ''}. Name another "
            "--protocol, or let the runs finish.",
        )


def _measured(run: ReportedRun) -> set[str]:
    """Return the names of the requests that have rows."""
    numbers = {row.request for stage in run.stages for row in run.rows(stage)}
    return {run.names[number] for number in numbers if number in run.names}


def _protocols(run: ReportedRun, wanted: Collection[str]) -> set[str]:
    rows = (row for stage in run.stages for row in run.rows(stage))
    found = {row.protocol for row in rows if row.protocol != "run"}
    return {name for name in found if not wanted or name in wanted}


def _table(
    run: ReportedRun, stage: str, shared: Mapping[str, int], protocols: Collection[str]
) -> ScoreTable:
    """Return a stage's table of the requests that both have, numbered the same in both."""
    numbers = {number: shared[name] for number, name in run.names.items() if name in shared}
    rows = (row for row in run.rows(stage) if not protocols or row.protocol in protocols)
    return score_table(rows, numbers)


def _differences(
    stage: str, one: ScoreTable, two: ScoreTable, catalogue: Catalogue, seed: int
) -> Iterator[Difference]:
    compared = set()
    for key in catalogue.ordered(set(one.keys) & set(two.keys)):
        old, new = _paired(one, two, [key])
        if old.size:
            compared.add(key)
            row = one.rows[one.keys.index(key)]
            yield Difference(
                stage=stage,
                key=key,
                unit=row.unit,
                higher_is_better=row.higher_is_better,
                first=float(old.mean()),
                second=float(new.mean()),
                difference=paired_interval(old[:, 0], new[:, 0], seed=seed),
            )
    for metric in catalogue.derived:
        for protocol in metric.info.protocols:
            keys = [Key(part, "", protocol) for part in metric.parts]
            if compared.issuperset(keys):
                yield _derived(stage, metric, protocol, *_paired(one, two, keys), seed)


def _derived(
    stage: str, metric: DerivedMetric, protocol: str, old: FloatArray, new: FloatArray, seed: int
) -> Difference:
    parts = len(metric.parts)

    def difference(means: Sequence[float]) -> float:
        return metric.combine(means[parts:]) - metric.combine(means[:parts])

    return Difference(
        stage=stage,
        key=Key(metric.info.name, "", protocol),
        unit=metric.info.unit,
        higher_is_better=metric.info.higher_is_better,
        first=metric.combine([float(mean) for mean in np.nanmean(old, axis=0)]),
        second=metric.combine([float(mean) for mean in np.nanmean(new, axis=0)]),
        difference=combined_interval(np.hstack((old, new)), difference, seed=seed),
    )


def _paired(one: ScoreTable, two: ScoreTable, keys: Sequence[Key]) -> tuple[FloatArray, FloatArray]:
    """Return both runs' values, (n, k) each, NaN where either has none; no line is all NaN."""
    both = sorted(set(one.requests) & set(two.requests))
    old, new = (
        table.after[np.ix_(lines, [table.keys.index(key) for key in keys])]
        for table, lines in (
            (one, [one.requests.index(request) for request in both]),
            (two, [two.requests.index(request) for request in both]),
        )
    )
    missing = np.isnan(old) | np.isnan(new)
    old, new = np.where(missing, np.nan, old), np.where(missing, np.nan, new)
    kept = ~missing.all(axis=1)
    return old[kept], new[kept]


def _remarks(first: ReportedRun, second: ReportedRun) -> Iterator[str]:
    for what, one, two in (
        (
            "model",
            *(str(run.model.get("fingerprint") or run.model_name) for run in (first, second)),
        ),
        ("seed", *(str(run.plan.get("seed", 0)) for run in (first, second))),
    ):
        if one != two:
            yield f"The runs differ in their {what}: {one[:16]} and {two[:16]}."
    for run in (first, second):
        if run.failed:
            yield (
                f"In {run.folder} {len(run.failed)} edits could not be made; their requests are "
                "not compared."
            )
        if not run.run.finished:
            yield f"{run.folder} is not finished."


def _about(run: ReportedRun) -> dict[str, Any]:  # Any: JSON values
    return {
        "run": run.folder,
        "method": run.method,
        "model": run.model_name,
        "dataset": run.data.get("name"),
        "dataset_digest": run.data.get("digest"),
        "plan_digest": run.meta.get("plan_digest"),
    }


def _plain(one: Difference) -> dict[str, Any]:  # Any: JSON values
    return {
        "stage": one.stage,
        **one.key._asdict(),
        "unit": one.unit,
        "higher_is_better": one.higher_is_better,
        "n": one.difference.n,
        "a": one.first,
        "b": one.second,
        "difference": one.difference.value,
        "low": one.difference.low,
        "high": one.difference.high,
        "better": one.better,
    }
