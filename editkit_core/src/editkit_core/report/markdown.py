"""The report as Markdown: tables and words, no pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from editkit_core import __version__
from editkit_core.report.document import Document, Group, Member
from editkit_core.report.intervals import RESAMPLES, Interval
from editkit_core.report.wording import (
    interval_text,
    metric_text,
    number,
    protocol_title,
    shown,
    stage_text,
)

__all__ = ["render_markdown"]

LONGEST = 160
_SPECIAL = frozenset("\\`*_{}[]<>#+!|~&")


def render_markdown(document: Document, *, seed: int = 0) -> str:
    """Return the report as Markdown (GitHub's flavour, for its tables).

    Args:
        document: What to show.
        seed: The bootstrap's, to be told.
    """
    blocks = [
        f"# {_text(document.title)}",
        "Means over requests, with 95 % bootstrap intervals "
        f"({RESAMPLES:,} resamples, seed {seed}) and the number n of requests. Numbers of "
        "different protocols are never averaged. `*`: all requests scored the same, so no resample "
        "can differ; up to 3/n of all others may.",
    ]
    for group in document.groups:
        blocks += _group(group)
    blocks += ["## What was run", *(block for one in document.members for block in _run(one))]
    blocks += ["## What the numbers mean", *_definitions(document)]
    blocks.append(f"Made by editkit {__version__}.")
    return "\n\n".join(blocks) + "\n"


def _group(group: Group) -> Iterator[str]:
    yield f"## {_text(group.model)} on {_text(group.data)}, {_text(group.scenario)}"
    digests = [
        f"{name} `{_code(value[:12])}`"
        for name, value in (("model", group.fingerprint), ("data set", group.digest))
        if value
    ]
    policy = _text(group.target_policy or "not recorded")
    yield ", ".join((f"Wanted answer: {policy}", *digests)) + "."
    remarks = [
        f"- {_text(one.label)}: {_text(said)}" for one in group.members for said in one.remarks
    ]
    if remarks:
        yield "\n".join(remarks)
    if group.caution:
        yield group.caution
    labels = [_text(member.label) for member in group.members]
    for stage in group.stages:
        for protocol, lines in stage.tables.items():
            title = protocol_title(protocol)
            yield f"### {_text(stage_text(stage.name))}: {_text(title)} (`{_code(protocol)}`)"
            rows = []
            for line in lines:
                cells = [_text(metric_text(line.key.metric, line.key.probe))]
                cells.append("" if line.before is None else number(line.before.value, line.unit))
                for member, score in zip(group.members, line.scores, strict=True):
                    cell = "" if score is None else _score(score.after, line.unit)
                    if score is not None and stage.name == member.run.last_stage:
                        for one in member.published.get(line.key, ()):
                            cell += f"; paper {number(one.value, line.unit)} ({_text(one.source)})"
                    cells.append(cell)
                rows.append(cells)
            yield _table(["metric", "unedited", *labels], rows)
    yield from _retention(group)
    yield from _efficiency(group)
    for member in group.members:
        yield from _relations(group, member)
        yield from _failures(member)


def _retention(group: Group) -> Iterator[str]:
    rows = [
        [
            _text(metric_text(curve.key.metric, curve.key.probe)),
            f"`{_code(curve.key.protocol)}`",
            _text(member.label),
            str(point.edits),
            _score(point.score, curve.unit),
        ]
        for member in group.members
        for curve in member.curves
        for point in curve.points
    ]
    if rows:
        yield "### Retention: the score of the edits made so far"
        yield _table(["metric", "protocol", "run", "edits", "score"], rows)


def _efficiency(group: Group) -> Iterator[str]:
    rows = [
        [
            _text(member.label),
            _text(stage.name),
            str(stage.units),
            number(stage.median_s, "s"),
            number(stage.p95_s, "s"),
            number(stage.total_s, "s"),
        ]
        for member in group.members
        for stage in member.costs.stages
    ]
    if rows:
        yield "### Efficiency"
        yield _table(["run", "stage", "times", "median", "95 % below", "together"], rows)
    peaks = [
        [_text(member.label), place, _text(name), number(value, "bytes")]
        for member in group.members
        for place, found in (
            ("process", member.costs.host_bytes),
            ("accelerator", member.costs.device_bytes),
        )
        for name, value in found.items()
    ]
    if peaks:
        yield _table(["run", "memory of the", "stage", "peak"], peaks)


def _relations(group: Group, member: Member) -> Iterator[str]:
    if not member.relations:
        return
    yield f"### By relation: {_text(member.label)}"
    names = [
        f"{_text(metric_text(key.metric, key.probe))} (`{_code(key.protocol)}`)"
        for key in group.headline
    ]
    rows = []
    for one in member.relations:
        found = [one.scores.get(key) for key in group.headline]
        cells = ["" if score is None else _score(score.after, score.unit) for score in found]
        rows.append([_text(one.relation), str(one.requests), *cells])
    yield _table(["relation", "requests", *names], rows)


def _failures(member: Member) -> Iterator[str]:
    for key, failures in member.failures.items():
        title = metric_text(key.metric, key.probe)
        yield f"### Worst failures: {_text(member.label)}, {_text(title)} (`{_code(key.protocol)}`)"
        rows = [
            [
                _text(one.request),
                _text(one.row.prompt),
                "*as before*" if one.kept else _text(one.row.expected),
                _text(one.row.text_before),
                _text(one.row.text_after),
                number(one.row.after, one.row.unit),
            ]
            for one in failures
        ]
        yield _table(["request", "prompt", "wanted", "before", "after", "score"], rows)


def _run(member: Member) -> Iterator[str]:
    run = member.run
    yield f"### {_text(member.label)} ({_text(run.folder)})"
    facts = [
        ("model", run.model_name),
        ("data set", str(run.data.get("source") or run.plan.get("dataset") or "not recorded")),
        ("seed", str(run.plan.get("seed", "not recorded"))),
        ("begun", str(run.meta.get("created") or "not recorded")),
        ("plan digest", str(run.meta.get("plan_digest") or "not recorded")),
        ("data digest", str(run.data.get("digest") or "not recorded")),
        ("model fingerprint", str(run.model.get("fingerprint") or "not recorded")),
        ("command", str(run.meta.get("command") or "not recorded")),
    ]
    versions = run.meta.get("versions")
    if isinstance(versions, dict):
        facts.append(("software", ", ".join(f"{n} {v}" for n, v in sorted(versions.items()))))
    yield "\n".join(f"- {name}: `{_code(value)}`" for name, value in facts)


def _definitions(document: Document) -> Iterator[str]:
    for metric in document.metrics:
        info = document.catalogue.infos.get(metric)
        said = (
            "no definition: the plugin it comes from is not installed here"
            if info is None
            else f"{info.title}. {info.definition} ({info.source})"
        )
        yield f"**{_text(metric_text(metric))}**: {_text(said, longest=None)}"


def _score(interval: Interval, unit: str) -> str:
    said = number(interval.value, unit)
    if interval.low is None:
        return f"{said} (n = {interval.n})"
    if interval.is_flat:
        return f"{said} `*` (n = {interval.n})"
    return f"{said} [{interval_text(interval, unit)}] (n = {interval.n})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(text: str, *, longest: int | None = LONGEST) -> str:
    """Return foreign text that stands for itself: no markup, no HTML, one line."""
    if longest is not None and len(text) > longest:
        text = text[:longest] + "…"
    line = shown(text).replace("\n", " ").replace("\t", " ")
    return "".join(f"\\{c}" if c in _SPECIAL else c for c in line).replace("://", ":\\//")


def _code(text: str) -> str:
    """Return foreign text for between two backticks."""
    return shown(text).replace("`", "'").replace("\n", " ").replace("|", "\\|")
