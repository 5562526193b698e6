"""Pictures of matplotlib as SVG that lives inside a page: its colours, its text, no loose ids.

Drawing uses a few colours that stand for the page's CSS variables, so that one picture is readable
in light and in dark. Text stays text, in the page's font.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from editkit_core.report.heatmap import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CARD",
    "GRID",
    "INK",
    "MARKERS",
    "MUTED",
    "SERIES",
    "drawing",
    "inline_svg",
    "plain_label",
]

INK, MUTED, GRID, CARD = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0102{number:02x}" for number in range(1, 9))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "rule", CARD: "card"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_FONT = re.compile(r"(?:'[^']*', )+sans-serif")
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "editkit",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.size": 11.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the house's style; other settings of matplotlib are as they come.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        # The browser draws the text, with its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """Return a figure as an ``<svg>`` element; equal figures give equal text.

    Args:
        figure: What was drawn, within `drawing`.
        name: Prefix of its ids, unlike any other's on the page.
        description: What it shows, for those who do not see it.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(
        buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(element)
    for definitions in root.findall(f"{{{_SVG}}}defs"):
        for style in definitions.findall(f"{{{_SVG}}}style"):
            definitions.remove(style)  # it would be for all of the page
    for element in root.iter():
        for attribute, value in element.attrib.items():
            element.set(attribute, _adapted(attribute, value, name))
    root.set("role", "img")
    root.set("aria-label", plain_label(description))
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def plain_label(text: str) -> str:
    """Return a text on one line without characters that a picture cannot hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _adapted(attribute: str, value: str, name: str) -> str:
    if attribute == "id":
        return f"{name}-{value}"
    if attribute == f"{{{_XLINK}}}href":
        return f"#{name}-{value.removeprefix('#')}"
    value = value.replace("url(#", f"url(#{name}-")
    for colour, variable in _VARIABLES.items():
        value = value.replace(colour, f"var(--{variable})")
    return _FONT.sub("var(--sans)", value) if attribute == "style" else value
