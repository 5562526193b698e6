"""The few pieces of Markdown that the generated pages are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def cell(text: str) -> str:
    """Return a text that fits a table cell."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Return inline code that fits a table cell."""
    return f"`{cell(text)}`" if text else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; an empty one gives nothing."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines])


def page(title: str, *blocks: str) -> str:
    """Return a page: a title, a note that it is generated, and blocks between blank lines."""
    note = "<!-- Written by scripts/docs from the code. Change the code, not this page. -->"
    return "\n\n".join([f"# {title}", note, *(block for block in blocks if block)]) + "\n"
