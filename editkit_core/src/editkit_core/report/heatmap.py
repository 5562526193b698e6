"""A picture of a causal trace: one heat map for each kind, tokens down, layers across.

White is no effect, red a state that brings the answer back, blue one that drives it further away.
Each panel has its own colour scale, since one MLP or attention layer restores far less than a
whole hidden state. Subject tokens carry a ``*``; the strongest cell of each panel is outlined.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from editkit_core.atomic import write_file
from editkit_core.errors import (
    InvalidParameterError,
    MissingExtraError,
    OutputExistsError,
)
from editkit_core.numerics.tracing_result import FloatArray, TraceResult
from editkit_core.report.heatmap_text import Fonts, caption, heading, panel_title, token_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
TOKEN_SIZE, LABEL_SIZE, TITLE_SIZE = 9.0, 9.5, 11.0
# Keeps the colour scale of an all-zero panel from having no height.
TINY = 1e-12


def draw_trace(
    result: TraceResult, path: Path | str, *, title: str | None = None, force: bool = False
) -> Path:
    """Draw a trace as a PNG file.

    Args:
        result: What to draw; a panel for each kind it holds.
        path: Where to write, ending in ``.png``; the folder must exist.
        title: First line of the picture; None takes the prompt and the answer.
        force: Replace an existing file.

    Returns:
        ``path``.

    Raises:
        InvalidParameterError: The path does not end in ``.png``.
        OutputExistsError: The file exists and ``force`` is not given.
        MissingExtraError: matplotlib is not installed.
        WriteFailedError: The file could not be written; nothing is left behind.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InvalidParameterError(
            f"The heat map is a PNG picture, and {path.name!r} does not end in .png. Rename it.",
            path=str(path),
        )
    if path.exists() and not force:
        raise OutputExistsError(
            f"{path} exists. Choose another name, or allow replacing it (force).", path=str(path)
        )
    write_file(path, [render_trace(result, title=title)], force=force)
    return path


def require_matplotlib() -> None:
    """Refuse early what :func:`draw_trace` could not draw.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401  # only whether it can be imported
    except ImportError as error:
        raise MissingExtraError(
            "Drawing needs matplotlib, which is not installed. Run: "
            'pip install "editkit-core[plot]"',
            extra="plot",
        ) from error


def render_trace(result: TraceResult, *, title: str | None = None) -> bytes:
    """Return the picture of a trace as the bytes of a PNG file; equal traces give equal bytes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The canvas is made here and not by pyplot: no window, no global list of figures.
    fonts = Fonts.installed()
    labels = token_labels(result, fonts)
    figure = Figure(_size_inches(result, labels), dpi=DPI, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    _fill(figure, result, title, labels, fonts)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": "editkit"})
    return buffer.getvalue()


def _size_inches(result: TraceResult, labels: Sequence[str]) -> tuple[float, float]:
    panel = float(np.clip(0.09 * len(result.layers), 2.1, 4.4))
    width = 0.4 + 0.085 * max(map(len, labels)) + len(result.kinds) * (panel + 0.9)
    return max(width, 6.0), 1.9 + 0.22 * max(len(labels), 5)


def _fill(
    figure: Figure, result: TraceResult, title: str | None, labels: Sequence[str], fonts: Fonts
) -> None:
    figure.suptitle(
        heading(result, title, fonts, _fitting(figure, TITLE_SIZE)),
        fontsize=TITLE_SIZE,
        fontfamily=list(fonts.families),
        parse_math=False,
    )
    figure.supxlabel(caption(result, _fitting(figure, TOKEN_SIZE)), fontsize=TOKEN_SIZE)
    panels = figure.subplots(1, len(result.kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, result.kinds, strict=True):
        _draw_panel(figure, axes, result.effects[kind])
        axes.set_title(panel_title(result, kind), fontsize=LABEL_SIZE)
    panels[0].set_yticks(
        range(len(labels)),
        labels,
        fontsize=TOKEN_SIZE,
        fontfamily=list(fonts.families),
        parse_math=False,
    )


def _fitting(figure: Figure, size: float) -> int:
    """Return how many characters of a font size fit across the figure."""
    return int(figure.get_figwidth() * 72 / (0.58 * size))


def _draw_panel(figure: Figure, axes: Axes, effects: FloatArray) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    # The scale is symmetric about 0, so that white means nothing; it ends a little beyond the data,
    # where the colours are still light enough for the outline to show.
    limit = 1.2 * max(float(np.abs(effects).max()), TINY)
    image = axes.imshow(
        effects, aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=-limit, vmax=limit
    )
    token, layer = divmod(int(effects.argmax()), effects.shape[1])
    axes.add_patch(
        Rectangle((layer - 0.5, token - 0.5), 1, 1, fill=False, linewidth=1.4, clip_on=False)
    )
    axes.set_xlabel("layer", fontsize=LABEL_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.tick_params(axis="x", labelsize=TOKEN_SIZE)
    axes.tick_params(axis="y", length=0)
    bar = figure.colorbar(image, ax=axes, pad=0.03, aspect=18)
    # Of the symmetric scale the bar shows the part in use.
    bar.ax.set_ylim(min(float(effects.min()), 0.0), max(float(effects.max()), TINY))
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
    bar.ax.tick_params(labelsize=TOKEN_SIZE - 1)
