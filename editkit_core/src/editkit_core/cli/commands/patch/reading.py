"""What the commands on patch files share: reading one, and printing what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editkit_core.cli.output import printable

if TYPE_CHECKING:
    from editkit_core.patch.format import Patch

_LONGEST = 60
file_argument = click.argument("file", type=click.Path(path_type=Path))


def read_patch(file: Path) -> Patch:
    """Read a patch file strictly, with the entry kinds that are installed."""
    from editkit_core.cli.options import known_kinds
    from editkit_core.patch.format import Patch

    return Patch.load(file, kinds=known_kinds())


def echo(line: str) -> None:
    """Print a line that may hold text from a foreign file."""
    click.echo(printable(line))


def short(value: Any) -> str:  # Any: JSON values
    """Return a value for a cell of a table."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
