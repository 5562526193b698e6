"""The probes that went wrong the most, to be read side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TypeAlias

import attrs

from editkit_core.metrics.report import Row
from editkit_core.report.catalogue import Catalogue
from editkit_core.report.runs import ReportedRun
from editkit_core.report.scores import Key

__all__ = ["Failure", "worst_failures"]

EACH = 5
_Probe: TypeAlias = tuple[int, str, str, str]
_SHOWN = ("gen_judge", "gen_em", "tf_contrastive", "tf_token")


@attrs.frozen(kw_only=True)
class Failure:
    """A probe that fell short of what a right model scores.

    Attributes:
        request: The request's name.
        relation: Its relation, or empty.
        row: What was asked, wanted and said, before and after.
        shortfall: How far the score is from the best one.
        kept: Whether what was wanted is what the model said before: so it is where every probe of
            the metric has the best score before the edit, as locality has by definition.
    """

    request: str
    relation: str
    row: Row
    shortfall: float
    kept: bool


def worst_failures(
    run: ReportedRun, catalogue: Catalogue, *, each: int = EACH
) -> dict[Key, tuple[Failure, ...]]:
    """Return the worst probes of each metric and probe type in the last stage.

    Of several protocols the one is taken that shows best what the model said, and metrics without
    any text are left out unless there are no others. The worst are those that lost the most against
    the unedited model, then those farthest from the best score, then those that other protocols
    score lowest too; what is equally bad comes in the order of the requests, and of one request one
    probe is shown.

    Args:
        run: A run.
        catalogue: Says what the best score of a metric is.
        each: The most failures of a metric and probe type.
    """
    rows = run.rows(run.last_stage)
    found: dict[Key, list[Failure]] = defaultdict(list)
    for failure in _failures(run, rows, catalogue):
        row = failure.row
        found[Key(row.metric, row.probe, row.protocol)].append(failure)
    keys = _best_protocols({Key(row.metric, row.probe, row.protocol) for row in rows})
    chosen = [key for key in catalogue.ordered(keys) if found.get(key)]
    told = [key for key in chosen if any(one.row.text_after for one in found[key])]
    means = _means_of_protocols(rows)
    return {key: _first(found[key], means, each) for key in told or chosen}


def _best_protocols(keys: Iterable[Key]) -> list[Key]:
    best: dict[tuple[str, str], Key] = {}
    for key in sorted(key for key in keys if key.protocol in _SHOWN):
        old = best.get((key.metric, key.probe))
        if old is None or _SHOWN.index(key.protocol) < _SHOWN.index(old.protocol):
            best[key.metric, key.probe] = key
    return list(best.values())


def _failures(run: ReportedRun, rows: Sequence[Row], catalogue: Catalogue) -> Iterator[Failure]:
    differs = {(row.metric, row.probe) for row in rows if row.before != 1.0}
    for row in rows:
        ideal = catalogue.ideal(row.metric)
        if row.unit != "share" or row.higher_is_better is not True or ideal is None:
            continue
        if row.after < ideal:
            yield Failure(
                request=run.names.get(row.request, f"#{row.request}"),
                relation=run.relations.get(row.request, ""),
                row=row,
                shortfall=ideal - row.after,
                kept=(row.metric, row.probe) not in differs,
            )


def _means_of_protocols(rows: Iterable[Row]) -> dict[_Probe, float]:
    """Return the mean over protocols of each probe: only to rank, never to show."""
    scores: dict[_Probe, list[float]] = defaultdict(list)
    for row in rows:
        scores[_probe(row)].append(row.after)
    return {probe: fmean(values) for probe, values in scores.items()}


def _probe(row: Row) -> _Probe:
    return row.request, row.metric, row.probe, row.prompt


def _first(
    failures: Iterable[Failure], means: Mapping[_Probe, float], each: int
) -> tuple[Failure, ...]:
    def badness(one: Failure) -> tuple[float, float, float, int]:
        row = one.row
        return row.after - row.before, -one.shortfall, means[_probe(row)], row.request

    by_request: dict[int, Failure] = {}
    for failure in sorted(failures, key=badness):
        by_request.setdefault(failure.row.request, failure)
    return tuple(by_request.values())[:each]
