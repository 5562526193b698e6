"""What commands print: tables for people, JSON for programs, progress on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from editkit_core.types import Progress, SilentProgress

if TYPE_CHECKING:
    from rich.console import Console

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def print_json(value: Any) -> None:  # Any: JSON values
    """Print one JSON value."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    click.echo(json.dumps(value, indent=2, ensure_ascii=plain))


def console() -> Console:
    """Return the console for people; it wraps at the terminal's width, 100 when there is none."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 100, soft_wrap=False)


def print_table(
    title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], *, indent: int = 0
) -> None:
    """Print a table; cell texts are shown as they are, without markup or control characters."""
    from rich import box
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if title is not None:
        click.echo(" " * indent + title)
    console().print(Padding(table, (0, 0, 1, indent), expand=False))


def printable(text: str) -> str:
    """Escape control characters: a patch from elsewhere must not steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def progress_bar(*, off: bool = False) -> Iterator[Progress]:
    """Give a progress bar on standard error, or a silent one when it is not a terminal."""
    if off or not sys.stderr.isatty():
        yield SilentProgress()
        return
    from editkit_core.cli.bar import Bar

    with Bar() as bar:
        yield bar


def human_bytes(count: int) -> str:
    """Return a size with its unit: ``9.6 KB`` (1 KB = 1000 bytes)."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")
