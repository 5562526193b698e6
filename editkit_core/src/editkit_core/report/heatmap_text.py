"""The words on a heat map: token labels, headings, and fonts that can draw them."""

from __future__ import annotations

import textwrap

import attrs

from editkit_core.numerics.tracing_result import TraceKind, TraceResult

TITLES: dict[TraceKind, str] = {
    "hidden": "Hidden state",
    "mlp": "MLP output",
    "attention": "Attention output",
}
LONGEST_TOKEN = 18
# The first comes with matplotlib and holds Latin, Greek, Cyrillic and symbols; the others are used
# for what it lacks, where they are installed.
FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Arial Unicode MS",
)


@attrs.frozen
class Fonts:
    """Font families to draw with, and the characters that they hold together."""

    families: tuple[str, ...]
    characters: frozenset[int]

    @classmethod
    def installed(cls) -> Fonts:
        """Return the families of :data:`FAMILIES` that this machine has."""
        from matplotlib import font_manager

        present = set(font_manager.get_font_names())
        families = tuple(family for family in FAMILIES if family in present)
        fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families]
        return cls(families, frozenset().union(*(font.get_charmap() for font in fonts)))

    def drawable(self, text: str) -> str:
        """Return ``text`` on one line, with an escape for each character that no font holds."""
        return "".join(
            char if ord(char) in self.characters and char.isprintable() else _escape(char)
            for char in text
        )


def token_labels(result: TraceResult, fonts: Fonts) -> list[str]:
    """Return a short label for each token; the subject's have a ``*`` at their end."""
    start, end = result.subject
    labels = []
    for index, token in enumerate(result.tokens):
        text = fonts.drawable(token.strip() or token.replace(" ", "␣"))
        short = text if len(text) <= LONGEST_TOKEN else text[: LONGEST_TOKEN - 1] + "…"
        labels.append(short + "*" if start <= index < end else short)
    return labels


def heading(result: TraceResult, title: str | None, fonts: Fonts, width: int) -> str:
    """Return the title, or prompt and answer, wrapped to ``width`` characters."""
    text = f"{result.prompt} → {result.answer.strip()}" if title is None else title
    return "\n".join(textwrap.wrap(fonts.drawable(text), width))


def caption(result: TraceResult, width: int) -> str:
    """Return what the colours mean and the trace's numbers, wrapped to ``width`` characters."""
    text = (
        "Colour: indirect effect, the probability of the answer that comes back when the state is "
        f"restored. p(answer) is {result.p_clean:.3g} clean and {result.p_corrupted:.3g} with "
        f"noise {result.noise:.3g} on the * tokens ({result.samples} samples, seed {result.seed})."
    )
    return "\n".join(textwrap.wrap(text, width))


def panel_title(result: TraceResult, kind: TraceKind) -> str:
    """Return the panel's name, how many layers it restores together, and its strongest cell."""
    together = "" if kind == "hidden" else f" ({result.window} layer{'s'[: result.window > 1]})"
    effects = result.effects[kind]
    layer = int(effects.argmax()) % effects.shape[1]
    return f"{TITLES[kind]}{together}\nmax {effects.max():+.2g} at layer {layer}"


def _escape(char: str) -> str:
    if char == "\N{REPLACEMENT CHARACTER}":
        return "?"
    return char.encode("unicode_escape").decode("ascii")
