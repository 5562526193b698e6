"""The report as one page of HTML that holds all it shows: no scripts, no fonts, no network.

Every text that is not ours (prompts, what the model said, names of files and methods) goes through
the template's automatic escaping; characters that steer the reading direction are written out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import attrs

from editkit_core import __version__
from editkit_core.report.costs import Costs
from editkit_core.report.document import Document, Member, Stage
from editkit_core.report.figures import relation_pictures, retention_pictures, score_pictures
from editkit_core.report.intervals import RESAMPLES
from editkit_core.report.published import Published
from editkit_core.report.runs import ReportedRun
from editkit_core.report.scores import Key
from editkit_core.report.svg import drawing
from editkit_core.report.wording import (
    PROTOCOLS,
    interval_text,
    metric_text,
    number,
    protocol_title,
    shown,
    stage_text,
)

__all__ = ["render_html"]

LONGEST = 300


def render_html(document: Document, *, seed: int = 0) -> str:
    """Return the page; equal documents give equal pages.

    Args:
        document: What to show.
        seed: The bootstrap's, to be told.

    Raises:
        MissingExtraError: matplotlib, which draws the pictures, is not installed.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    # Only what svg.inline_svg made goes through: an XML writer has escaped its texts.
    environment.filters["svg"] = Markup
    papers = _Papers(document)
    with drawing():  # refuses early when it cannot draw
        return environment.get_template("report.html.j2").render(
            document=document,
            style=Markup(_template("style.css")),
            version=__version__,
            resamples=f"{RESAMPLES:,}",
            seed=seed,
            longest=LONGEST,
            score_pictures=score_pictures,
            retention_pictures=retention_pictures,
            relation_pictures=relation_pictures,
            number=number,
            interval_text=interval_text,
            metric_text=metric_text,
            stage_text=stage_text,
            protocol_title=protocol_title,
            protocol_about=lambda name: PROTOCOLS.get(name, ("", "A protocol of a plugin."))[1],
            percent=lambda share: f"{100 * min(1.0, max(0.0, share)):.2f}",
            shortened=lambda text: text if len(text) <= LONGEST else text[:LONGEST] + "…",
            cost_lines=_cost_lines,
            series_of=lambda group, member: group.members.index(member) % 8 + 1,
            papers=papers.beside,
            paper_anchor=papers.anchor,
            paper_number=papers.number,
            all_papers=papers.entries,
            facts=lambda run: list(_facts(run)),
            digests=lambda run: list(_digests(run)),
            versions=lambda run: sorted(_pairs(run.meta.get("versions"))),
            command=lambda run: str(run.meta.get("command") or "not recorded"),
            parameters=_parameters,
            plan=lambda run: _plain_json(run.plan),
        )


def _template(name: str) -> str:
    place = resources.files("editkit_core.report").joinpath("templates", name)
    return place.read_text(encoding="utf-8")


@attrs.frozen
class _Entry:
    anchor: str
    text: str
    note: str


class _Papers:
    """The published numbers of a document, their sources numbered as they come."""

    def __init__(self, document: Document) -> None:
        self._numbers: dict[tuple[str, str], int] = {}
        for group in document.groups:
            for stage in group.stages:
                for lines in stage.tables.values():
                    for line in lines:
                        for member in group.members:
                            for one in self.beside(member, stage, line.key):
                                place = (one.source, one.note)
                                self._numbers.setdefault(place, len(self._numbers) + 1)

    def beside(self, member: Member, stage: Stage, key: Key) -> tuple[Published, ...]:
        """Return what belongs beside a score: it is that of the scenario's last stage."""
        return member.published.get(key, ()) if stage.name == member.run.last_stage else ()

    def number(self, one: Published) -> int:
        return self._numbers[one.source, one.note]

    def anchor(self, one: Published) -> str:
        return f"paper-{self.number(one)}"

    def entries(self) -> list[_Entry]:
        return [
            _Entry(f"paper-{number}", source, note)
            for (source, note), number in self._numbers.items()
        ]


@attrs.frozen
class _CostLine:
    name: str
    median: str
    p95: str
    total: str
    host: str
    device: str


def _cost_lines(costs: Costs) -> list[_CostLine]:
    stages = {stage.name: stage for stage in costs.stages}
    names = [*stages, *(n for n in (*costs.host_bytes, *costs.device_bytes) if n not in stages)]
    lines = []
    for name in dict.fromkeys(names):
        stage = stages.get(name)
        lines.append(
            _CostLine(
                name=name,
                median="" if stage is None else number(stage.median_s, "s"),
                p95="" if stage is None else number(stage.p95_s, "s"),
                total="" if stage is None else number(stage.total_s, "s"),
                host=_bytes(costs.host_bytes, name),
                device=_bytes(costs.device_bytes, name),
            )
        )
    return lines or [_CostLine("not recorded", "", "", "", "", "")]


def _bytes(peaks: Mapping[str, float], name: str) -> str:
    return number(peaks[name], "bytes") if name in peaks else ""


def _facts(run: ReportedRun) -> Iterator[tuple[str, str]]:
    yield "Method", run.method
    preset = _mapping(run.meta.get("method")).get("preset") or run.plan.get("preset")
    if preset:
        yield "Preset", str(preset)
    yield "Model", run.model_name
    parameters = run.model.get("parameters")
    if isinstance(parameters, int):
        yield "Parameters of the model", f"{parameters:,}"
    yield "Data set", str(run.data.get("source") or run.plan.get("dataset") or "not recorded")
    for name, label in (("records", "Records"), ("requests", "Requests")):
        if isinstance(run.data.get(name), int):
            yield label, f"{run.data[name]:,}"
    yield "Scenario", run.scenario
    yield "Seed", str(run.plan.get("seed", "not recorded"))
    yield "Begun", str(run.meta.get("created") or "not recorded")


def _digests(run: ReportedRun) -> Iterator[tuple[str, str]]:
    for name, value in (
        ("plan ", run.meta.get("plan_digest")),
        ("data ", run.data.get("digest")),
        ("model", run.model.get("fingerprint")),
        ("text ", _mapping(run.meta.get("corpus")).get("digest")),
    ):
        if value:
            yield name, str(value)


def _parameters(run: ReportedRun) -> str:
    found = _mapping(run.meta.get("method")).get("params") or run.plan.get("params")
    return _plain_json(found) if found else ""


def _pairs(value: object) -> list[tuple[str, str]]:
    return [(str(name), str(each)) for name, each in _mapping(value).items()]


def _plain_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _mapping(value: object) -> Mapping[str, Any]:  # Any: JSON values
    return value if isinstance(value, Mapping) else {}
