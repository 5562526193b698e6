"""The pictures of a report: scores with intervals, retention curves, scores by relation."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from editkit_core.report.document import Group, Stage
from editkit_core.report.intervals import Interval
from editkit_core.report.retention import Curve
from editkit_core.report.scores import Key, Score
from editkit_core.report.svg import (
    CARD,
    GRID,
    INK,
    MARKERS,
    SERIES,
    drawing,
    inline_svg,
    plain_label,
)
from editkit_core.report.wording import metric_text, protocol_title, stage_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "relation_pictures", "retention_pictures", "score_pictures"]

WIDTH_INCHES = 5.2
MOST_RELATIONS = 20
MOST_CURVES = 8
_LABEL_CHARACTERS = 26


@attrs.frozen(kw_only=True)
class Picture:
    """A drawn figure.

    Attributes:
        title: What it is.
        svg: An ``<svg>`` element.
    """

    title: str
    svg: str


def score_pictures(group: Group, stage: Stage, name: str) -> list[Picture]:
    """Draw the shares of a stage with their intervals, one picture a protocol."""
    pictures = []
    for number, (protocol, lines) in enumerate(stage.tables.items(), 1):
        shares = [line for line in lines if line.unit == "share"]
        if not shares:
            continue
        labels = [metric_text(line.key.metric, line.key.probe) for line in shares]
        series = [_afters(scores) for scores in zip(*(line.scores for line in shares), strict=True)]
        title = protocol_title(protocol)
        about = f"{title}, {stage_text(stage.name).lower()}: scores in per cent with intervals."
        with drawing():
            figure = _dots(labels, series)
            svg = inline_svg(figure, f"{name}-{number}", about)
        pictures.append(Picture(title=title, svg=svg))
    return pictures


def retention_pictures(group: Group, name: str) -> list[Picture]:
    """Draw how scores go on with more edits, one picture a score."""
    keys = list(dict.fromkeys(curve.key for one in group.members for curve in one.curves))
    keys = [key for key in group.headline if key in keys] + [
        key for key in keys if key not in group.headline
    ]
    return [
        _retention(group, key, f"{name}-{number}")
        for number, key in enumerate(keys[:MOST_CURVES], 1)
    ]


def relation_pictures(group: Group, name: str) -> list[Picture]:
    """Draw the headline scores by relation, one picture a score."""
    return [
        picture
        for number, key in enumerate(group.headline, 1)
        if (picture := _by_relation(group, key, f"{name}-{number}")) is not None
    ]


def _by_relation(group: Group, key: Key, name: str) -> Picture | None:
    sizes: dict[str, int] = {}
    for member in group.members:
        for one in member.relations:
            if key in one.scores:
                n = one.scores[key].after.n
                sizes[one.relation] = max(sizes.get(one.relation, 0), n)
    if len(sizes) < 2:
        return None
    shown = sorted(sizes, key=lambda relation: (-sizes[relation], relation))[:MOST_RELATIONS]
    series = []
    for member in group.members:
        found = {one.relation: one.scores.get(key) for one in member.relations}
        series.append(_afters([found.get(relation) for relation in shown]))
    title = _title(key)
    labels = [f"{relation} ({sizes[relation]})" for relation in shown]
    with drawing():
        svg = inline_svg(_dots(labels, series), name, f"{title}, by relation, in per cent.")
    return Picture(title=title, svg=svg)


def _title(key: Key) -> str:
    return f"{metric_text(key.metric, key.probe)}, {protocol_title(key.protocol).lower()}"


def _afters(scores: Sequence[Score | None]) -> list[Interval | None]:
    return [None if score is None else score.after for score in scores]


def _dots(labels: Sequence[str], series: Sequence[Sequence[Interval | None]]) -> Figure:
    """Draw a dot and an interval for each label and run; labels go down, shares across."""
    from matplotlib.figure import Figure

    runs = len(series)
    wrapped = [textwrap.fill(plain_label(label), _LABEL_CHARACTERS) for label in labels]
    heights = [max(0.2 * runs + 0.14, 0.2 * (text.count("\n") + 1) + 0.1) for text in wrapped]
    tops = [sum(heights[:i]) for i in range(len(heights))]
    total = sum(heights)
    figure = Figure((WIDTH_INCHES, total + 0.55), layout="constrained")
    axes = figure.subplots()
    for run, values in enumerate(series):
        for top, height, value in zip(tops, heights, values, strict=True):
            if value is not None:
                _dot(axes, value, top + height / 2 + 0.2 * (run - (runs - 1) / 2), run)
    for top in tops[1:]:
        axes.axhline(top, color=GRID, linewidth=0.8)
    axes.set_ylim(total, 0)
    axes.set_xlim(-2, 102)
    axes.set_yticks([top + height / 2 for top, height in zip(tops, heights, strict=True)], wrapped)
    axes.set_xticks(range(0, 101, 25), [f"{x} %" for x in range(0, 101, 25)])
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(visible=False, axis="y")
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _dot(axes: Axes, value: Interval, y: float, run: int) -> None:
    colour, marker = SERIES[run % len(SERIES)], MARKERS[run % len(MARKERS)]
    if value.low is not None and value.high is not None:
        axes.plot(
            [100 * value.low, 100 * value.high],
            [y, y],
            color=colour,
            linewidth=2.4,
            alpha=0.55,
            solid_capstyle="round",
        )
    face = colour if _is_sure(value) else CARD
    axes.plot(
        [100 * value.value],
        [y],
        marker=marker,
        markersize=6,
        color=colour,
        markerfacecolor=face,
        clip_on=False,
    )


def _is_sure(value: Interval) -> bool:
    """Return whether the interval says something; what has none is drawn hollow."""
    return value.low is not None and not value.is_flat


def _retention(group: Group, key: Key, name: str) -> Picture:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    found = [
        (run, curve)
        for run, member in enumerate(group.members)
        for curve in member.curves
        if curve.key == key
    ]
    unit = found[0][1].unit
    with drawing():
        figure = Figure((WIDTH_INCHES, 3.1), layout="constrained")
        axes = figure.subplots()
        for run, curve in found:
            _curve(axes, curve, 100.0 if unit == "share" else 1.0, run)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        ticks = _spread(sorted({point.edits for _, curve in found for point in curve.points}))
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_xlabel("edits on the model (logarithmic)")
        if unit == "share":
            axes.set_ylim(-3, 103)
            axes.set_yticks(range(0, 101, 25), [f"{y} %" for y in range(0, 101, 25)])
        else:
            axes.set_ylabel(unit)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        svg = inline_svg(figure, name, f"{_title(key)}: score of the edits made so far.")
    return Picture(title=_title(key), svg=svg)


def _curve(axes: Axes, curve: Curve, scale: float, run: int) -> None:
    colour, marker = SERIES[run % len(SERIES)], MARKERS[run % len(MARKERS)]
    sure = [
        (point.edits, scale * point.score.low, scale * point.score.high)
        for point in curve.points
        if point.score.low is not None and point.score.high is not None
    ]
    if sure:
        edits, lows, highs = zip(*sure, strict=True)
        axes.fill_between(edits, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        [point.edits for point in curve.points],
        [scale * point.score.value for point in curve.points],
        color=colour,
        linewidth=2,
        clip_on=False,
    )
    for sure_or_not in (True, False):
        points = [point for point in curve.points if _is_sure(point.score) is sure_or_not]
        axes.plot(
            [point.edits for point in points],
            [scale * point.score.value for point in points],
            color=colour,
            linestyle="none",
            marker=marker,
            markersize=6,
            markerfacecolor=colour if sure_or_not else CARD,
            clip_on=False,
        )
    if curve.at_once is not None:
        at_once = scale * curve.at_once.value
        axes.axhline(at_once, color=colour, linewidth=1.2, linestyle=(0, (2, 3)))


def _spread(ticks: Sequence[int]) -> list[int]:
    """Leave out ticks too near to the one before on a logarithmic axis; the last one stays."""
    if not ticks:
        return []
    least = 0.08 * math.log10(max(10, ticks[-1] / ticks[0]))
    kept = [ticks[-1]]
    for tick in reversed(ticks[:-1]):
        if math.log10(kept[-1] / tick) >= least:
            kept.append(tick)
    return kept[::-1]
