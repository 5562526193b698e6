"""``editkit patch``: look at patch files, and make others of them."""

from __future__ import annotations

import click

from editkit_core.cli.commands.patch.comparing import diff, lint
from editkit_core.cli.commands.patch.folders import apply, revert
from editkit_core.cli.commands.patch.parts import drop, fold, split
from editkit_core.cli.commands.patch.showing import show, verify


@click.group("patch")
def command() -> None:
    """Show, check, compare, apply and revert patch files."""


for _one in (apply, diff, drop, fold, lint, revert, show, split, verify):
    command.add_command(_one)
