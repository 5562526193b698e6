"""A report's content, put together once; the page, Markdown, CSV and the terminal show it.

Runs are side by side in one table only where that says something: same model, same data set, same
answers, same scenario.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import attrs

from editkit_core.report.catalogue import Catalogue
from editkit_core.report.costs import Costs, costs_of
from editkit_core.report.failures import Failure, worst_failures
from editkit_core.report.intervals import Interval
from editkit_core.report.published import Published, published_of
from editkit_core.report.relations import RelationScores, headline_keys, relations_of
from editkit_core.report.retention import Curve, curves_of
from editkit_core.report.runs import ReportedRun, checkpoint_size
from editkit_core.report.scores import Key, Score, score_table
from editkit_core.report.wording import number

__all__ = ["Document", "Group", "Line", "Member", "Stage", "make_document"]

TITLE = "Knowledge edits, measured"


@attrs.frozen(kw_only=True, eq=False)
class Member:
    """A run among others that it can be compared with.

    Attributes:
        label: Its name in this group: the method, with the folder where that is not enough.
        run: The run.
        scores: By stage and by what they are of.
        costs: What the edits cost.
        curves: How scores go on with more edits.
        relations: Scores of the last stage by relation.
        failures: The worst probes of the last stage.
        published: What papers report for the same.
        remarks: What a reader must know about it.
    """

    label: str
    run: ReportedRun
    scores: dict[str, dict[Key, Score]]
    costs: Costs
    curves: tuple[Curve, ...]
    relations: tuple[RelationScores, ...]
    failures: dict[Key, tuple[Failure, ...]]
    published: dict[Key, tuple[Published, ...]]
    remarks: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Line:
    """A line of a table of scores: one metric and probe type, all runs.

    Attributes:
        key: What it is about.
        unit: Of the scores.
        higher_is_better: None when neither direction is better in itself.
        before: The score of the unedited model; None where the runs' requests differ.
        scores: One a run; None where a run lacks it.
    """

    key: Key
    unit: str
    higher_is_better: bool | None
    before: Interval | None
    scores: tuple[Score | None, ...]


@attrs.frozen(kw_only=True)
class Stage:
    """The tables of one stage, by protocol."""

    name: str
    tables: dict[str, tuple[Line, ...]]


@attrs.frozen(kw_only=True, eq=False)
class Group:
    """Runs that can be compared.

    Attributes:
        model: The model's public name.
        fingerprint: Its fingerprint.
        data: The data set's name.
        digest: Its digest.
        target_policy: Which of its answers was the target.
        scenario: How the edits were put together.
        members: The runs.
        stages: Their scores.
        headline: A few scores that stand for the others.
    """

    model: str
    fingerprint: str
    data: str
    digest: str
    target_policy: str
    scenario: str
    members: tuple[Member, ...]
    stages: tuple[Stage, ...]
    headline: tuple[Key, ...]

    @property
    def caution(self) -> str:
        """What the intervals leave out, where edits were on the model together."""
        if self.scenario == "single":
            return ""
        return (
            "Edits were on the model together here. The intervals treat requests as independent; "
            "they do not hold what another order or another batch would change."
        )


@attrs.frozen(kw_only=True, eq=False)
class Document:
    """All of a report.

    Attributes:
        title: For its head.
        groups: Runs that can be compared, together.
        catalogue: What the metrics are.
    """

    title: str
    groups: tuple[Group, ...]
    catalogue: Catalogue

    @property
    def members(self) -> tuple[Member, ...]:
        """Every run."""
        return tuple(member for group in self.groups for member in group.members)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that have scores, in order."""
        scores = (scores for member in self.members for scores in member.scores.values())
        keys = self.catalogue.ordered(key for by_key in scores for key in by_key)
        return tuple(dict.fromkeys(key.metric for key in keys))


def make_document(
    runs: Sequence[ReportedRun],
    *,
    title: str | None = None,
    catalogue: Catalogue | None = None,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Document:
    """Put a report together.

    Args:
        runs: At least one.
        title: For its head; None gives it a general one.
        catalogue: What the metrics are; None asks the core and the plugins.
        seed: Of the bootstrap.
        advance: Called after each run.
    """
    catalogue = catalogue or Catalogue.load()
    together: dict[tuple[str, ...], list[ReportedRun]] = {}
    for run in runs:
        together.setdefault(_kind(run), []).append(run)
    groups = [_group(alike, catalogue, seed, advance) for alike in together.values()]
    return Document(title=title or TITLE, groups=tuple(groups), catalogue=catalogue)


def _kind(run: ReportedRun) -> tuple[str, ...]:
    model = str(run.model.get("fingerprint") or run.model_name)
    data = str(run.data.get("digest") or run.data.get("name"))
    return model, data, run.target_policy, run.scenario


def _group(
    runs: Sequence[ReportedRun], catalogue: Catalogue, seed: int, advance: Callable[[], None]
) -> Group:
    labels = _labels(runs)
    members = []
    for label, run in zip(labels, runs, strict=True):
        members.append(_member(label, run, catalogue, seed))
        advance()
    stages = dict.fromkeys(
        stage for run in runs for stage in run.stages if checkpoint_size(stage) is None
    )
    first = runs[0]
    return Group(
        model=first.model_name,
        fingerprint=str(first.model.get("fingerprint") or ""),
        data=str(first.data.get("name") or first.plan.get("dataset") or "unknown data set"),
        digest=str(first.data.get("digest") or ""),
        target_policy=first.target_policy,
        scenario=first.scenario,
        members=tuple(members),
        stages=tuple(_stage(stage, members, catalogue) for stage in stages),
        headline=tuple(headline_keys(_last_keys(members), catalogue)),
    )


def _member(label: str, run: ReportedRun, catalogue: Catalogue, seed: int) -> Member:
    scores = {
        stage: {
            score.key: score
            for score in score_table(run.rows(stage)).scores(catalogue.derived, seed=seed)
        }
        for stage in run.stages
    }
    headline = headline_keys(scores.get(run.last_stage, {}), catalogue)
    costs = costs_of(run)
    return Member(
        label=label,
        run=run,
        scores=scores,
        costs=costs,
        curves=curves_of(run, seed=seed),
        relations=relations_of(run, headline, seed=seed),
        failures=worst_failures(run, catalogue),
        published=published_of(run),
        remarks=tuple(_remarks(run, costs)),
    )


def _last_keys(members: Sequence[Member]) -> list[Key]:
    return [key for one in members for key in one.scores.get(one.run.last_stage, {})]


def _labels(runs: Sequence[ReportedRun]) -> list[str]:
    """Name runs by their method; of equal names by folder too, and by number if need be."""
    labels = [run.method for run in runs]
    times = Counter(labels)
    longer = [
        f"{label} · {run.folder}" if times[label] > 1 and run.folder != label else label
        for label, run in zip(labels, runs, strict=True)
    ]
    again, seen = Counter(longer), Counter[str]()
    unique = []
    for label in longer:
        seen[label] += 1
        unique.append(f"{label} ({seen[label]})" if again[label] > 1 else label)
    return unique


def _stage(stage: str, members: Sequence[Member], catalogue: Catalogue) -> Stage:
    found = catalogue.ordered(key for one in members for key in one.scores.get(stage, {}))
    tables: dict[str, list[Line]] = {}
    for key in found:
        scores = tuple(one.scores.get(stage, {}).get(key) for one in members)
        tables.setdefault(key.protocol, []).append(_line(key, scores))
    return Stage(name=stage, tables={name: tuple(lines) for name, lines in tables.items()})


def _line(key: Key, scores: tuple[Score | None, ...]) -> Line:
    there = [score for score in scores if score is not None]
    befores = [score.before for score in there]
    same = all(
        abs(one.value - befores[0].value) <= 1e-9 * max(1.0, abs(one.value)) for one in befores
    )
    return Line(
        key=key,
        unit=there[0].unit,
        higher_is_better=there[0].higher_is_better,
        before=befores[0] if same else None,
        scores=scores,
    )


def _remarks(run: ReportedRun, costs: Costs) -> Iterable[str]:
    """Say what makes the numbers less than they seem."""
    if not run.run.finished:
        planned = run.meta.get("units")
        of = f" of {planned}" if isinstance(planned, int) else ""
        yield f"The run is not finished: {len(run.run.units)}{of} units are there."
    if costs.failed:
        count = sum(costs.failed.values())
        codes = ", ".join(_times(code, n) for code, n in costs.failed.items())
        share = number(count / max(1, count + costs.made), "share")
        yield (
            f"{count} edit{'s'[: count != 1]} ({share}) could not be made ({codes}); the scores "
            "are of the others."
        )
    skipped = run.data.get("skipped")
    if isinstance(skipped, dict) and skipped:
        said = ", ".join(_times(reason, n) for reason, n in skipped.items())
        yield f"Records of the data set that gave no request: {said}."
    if run.unusable:
        yield f"{run.unusable} rows have no finite score and were left out."
    if not run.stages:
        yield "There are no scores."


def _times(what: str, count: object) -> str:
    return f"{what} once" if count == 1 else f"{what} {count} times"
