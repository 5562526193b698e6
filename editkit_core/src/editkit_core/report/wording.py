"""How numbers, protocols, stages and metrics are written for people."""

from __future__ import annotations

from editkit_core.report.intervals import Interval
from editkit_core.report.runs import checkpoint_size

__all__ = [
    "PROTOCOLS",
    "interval_text",
    "metric_text",
    "number",
    "protocol_title",
    "shown",
    "stage_text",
]

PROTOCOLS = {
    "tf_token": (
        "Teacher-forced tokens",
        "The answer is given; each of its tokens counts when it is the model's first choice. Most "
        "papers report this, and it is lenient.",
    ),
    "tf_contrastive": (
        "Teacher-forced comparison",
        "Which of two given answers is likelier, or by how much.",
    ),
    "gen_em": (
        "Free generation, exact match",
        "The model continues by itself; the text counts when it equals an answer after "
        "normalisation (for locality: the text before the edit).",
    ),
    "gen_contains": (
        "Free generation, contained",
        "The model continues by itself; the text counts when it contains an answer.",
    ),
    "gen_judge": (
        "Free generation, judged",
        "A judge says whether the text gives the answer.",
    ),
    "gen_sample": ("Sampled text", "Measured on text that was sampled with a seed."),
    "text": ("Text corpus", "Measured on texts, which no edit is about."),
}
_KEPT = frozenset(" \n\t\u00a0\u3000\u200c\u200d")
_STAGES = {
    "after_edit": "Right after each edit",
    "after_all": "After all edits",
}


def stage_text(stage: str) -> str:
    """Return a stage's name for people."""
    size = checkpoint_size(stage)
    if size is not None:
        return f"After {size} edit{'s'[: size != 1]}"
    return _STAGES.get(stage, stage)


def protocol_title(protocol: str) -> str:
    """Return a protocol's name for people."""
    return PROTOCOLS.get(protocol, (protocol, ""))[0]


def metric_text(metric: str, probe: str = "") -> str:
    """Return a metric's name, with the type of its probes."""
    name = metric.replace("_", " ")
    return f"{name} · {probe.replace('_', ' ')}" if probe else name


def number(value: float, unit: str, *, signed: bool = False) -> str:
    """Return a value with its unit; shares are per cent."""
    sign = "+" if signed and value > 0 else ""
    if unit == "share":
        return f"{sign}{100 * value:.1f} %"
    if unit == "bytes":
        return sign + _bytes(value)
    if unit == "s":
        return f"{sign}{value:.3g} s" if abs(value) < 1000 else f"{sign}{value:,.0f} s"
    places = 1 if unit == "points" else 3
    return f"{sign}{value:.{places}f}" + (f" {unit}" if unit in ("nat", "bits") else "")


def interval_text(interval: Interval, unit: str, *, signed: bool = False) -> str:
    """Return the ends of an interval, ``92.1 to 95.4``; empty where there is none."""
    if interval.low is None or interval.high is None:
        return ""
    low, high = (number(end, unit, signed=signed) for end in (interval.low, interval.high))
    if low.rpartition(" ")[2] == high.rpartition(" ")[2]:  # the unit, once
        low = low.rpartition(" ")[0]
    return f"{low} to {high}"


def shown(text: str) -> str:
    """Return foreign text with control characters and those that steer the direction escaped.

    Line ends and tabs stay, and so do the two joiners that scripts and emoji need.
    """
    return "".join(c if c.isprintable() or c in _KEPT else ascii(c)[1:-1] for c in text)


def _bytes(value: float) -> str:
    for name in ("B", "KB", "MB"):
        if abs(value) < 1000:
            return f"{value:.0f} {name}" if name == "B" else f"{value:.1f} {name}"
        value /= 1000
    return f"{value:.1f} GB"
