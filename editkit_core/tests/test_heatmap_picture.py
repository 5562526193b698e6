"""The picture of a causal trace."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from editkit_core.errors import (
    InvalidParameterError,
    MissingExtraError,
    OutputExistsError,
    WriteFailedError,
)
from editkit_core.numerics.tracing_result import TRACE_KINDS, TraceKind, TraceResult
from editkit_core.report import heatmap
from editkit_core.report.heatmap import draw_trace, render_trace


def made(
    n_tokens: int = 12,
    n_layers: int = 6,
    *,
    kinds: tuple[TraceKind, ...] = TRACE_KINDS,
    tokens: tuple[str, ...] | None = None,
    effect: float = 0.3,
) -> TraceResult:
    words = tokens or tuple(f" word{i}" for i in range(n_tokens))
    random = np.random.default_rng(0)
    return TraceResult(
        model="m",
        prompt="".join(words),
        tokens=words,
        subject=(1, 3),
        answer=" Suva",
        answer_id=0,
        p_clean=0.5,
        p_corrupted=0.1,
        effects={kind: effect * random.random((len(words), n_layers)) for kind in kinds},
        noise=0.1,
        samples=10,
        window=1,
        seed=0,
    )


def pixels(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png), format="png")


def drawn(result: TraceResult, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """Draw, and return the figure behind the picture."""
    figures: list[Figure] = []

    def keep(figure: Figure, *args: object) -> None:
        figures.append(figure)
        fill(figure, *args)

    fill = heatmap._fill
    monkeypatch.setattr(heatmap, "_fill", keep)
    render_trace(result)
    return figures[0]


def panels(figure: Figure) -> list:
    return [axes for axes in figure.axes if axes.get_xlabel() == "layer"]


def test_a_png_is_written(tmp_path: Path) -> None:
    path = tmp_path / "trace.png"
    assert draw_trace(made(), path) == path
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert [p.name for p in tmp_path.iterdir()] == ["trace.png"]


def test_each_kind_has_a_panel_and_a_colour_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(made(), monkeypatch)
    titles = [axes.get_title().split("\n")[0] for axes in panels(figure)]
    assert titles == ["Hidden state", "MLP output (1 layer)", "Attention output (1 layer)"]
    assert len(figure.axes) == 6


def test_one_kind_alone_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(panels(drawn(made(kinds=("mlp",)), monkeypatch))) == 1


def test_panels_hold_the_effects_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    result = made()
    for axes, kind in zip(panels(drawn(result, monkeypatch)), result.kinds, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), result.effects[kind])


def test_subject_tokens_carry_a_star(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = panels(drawn(made(5), monkeypatch))[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["word0", "word1*", "word2*", "word3", "word4"]


@pytest.mark.parametrize(("n_tokens", "n_layers"), [(12, 6), (25, 48), (1 + 2, 1)])
def test_no_label_overlaps_another(
    n_tokens: int, n_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tuple(f" token-that-is-long-{i}" for i in range(n_tokens))
    figure = drawn(made(n_layers=n_layers, tokens=words), monkeypatch)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [figure._suptitle, figure._supxlabel]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label]
        texts += [t for t in axes.get_xticklabels() + axes.get_yticklabels() if in_view(axes, t)]
    boxes = [t.get_window_extent(canvas.get_renderer()) for t in texts if t.get_text()]
    assert all(figure.bbox.containsx(b.x0) and figure.bbox.containsx(b.x1) for b in boxes)
    assert all(figure.bbox.containsy(b.y0) and figure.bbox.containsy(b.y1) for b in boxes)
    touching = [
        (texts[i].get_text(), texts[j].get_text())
        for i in range(len(boxes))
        for j in range(i)
        if boxes[i].overlaps(boxes[j])
    ]
    assert touching == []


def in_view(axes, text) -> bool:
    if not (text.get_visible() and text.get_text()):
        return False
    x, y = text.get_position()
    low, high = sorted(axes.get_xlim() if y == 0 else axes.get_ylim())
    return low <= (x if y == 0 else y) <= high


def test_a_trace_without_any_effect_is_drawn() -> None:
    assert pixels(render_trace(made(effect=0.0))).size


def test_formulas_line_breaks_and_unknown_characters_are_drawn_as_text() -> None:
    tokens = ("$x^2", " \\frac", "\n", " \U0001f600\u65e5", "\ufffd", " ")
    assert pixels(render_trace(made(tokens=tokens))).size


def test_equal_traces_give_equal_bytes() -> None:
    assert render_trace(made()) == render_trace(made())


def test_the_title_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    own = render_trace(made(), title="My title")
    assert own != render_trace(made())


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "trace.png"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"trace\.png exists"):
        draw_trace(made(), path)
    assert path.read_bytes() == b"mine"


def test_an_existing_file_is_replaced_when_told_so(tmp_path: Path) -> None:
    path = tmp_path / "trace.png"
    path.write_bytes(b"mine")
    draw_trace(made(), path, force=True)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(WriteFailedError, match="Check that the folder exists"):
        draw_trace(made(), tmp_path / "none" / "trace.png")


def test_a_full_disk_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.png"
    path.write_bytes(b"mine")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteFailedError, match="No space left"):
        draw_trace(made(), path, force=True)
    assert path.read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == ["trace.png"]


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match=r"does not end in \.png"):
        draw_trace(made(), tmp_path / "trace.pdf")


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r'pip install "editkit-core\[plot\]"'):
        draw_trace(made(), tmp_path / "trace.png")
    assert list(tmp_path.iterdir()) == []


def test_drawing_loads_neither_pyplot_nor_torch(tmp_path: Path) -> None:
    script = (
        "import sys, editkit_core.report.heatmap as h\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from test_heatmap_picture import made\n"
        f"h.draw_trace(made(), {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent)
