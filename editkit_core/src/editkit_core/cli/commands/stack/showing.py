"""``editkit stack series, applied, top``: look at the patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editkit_core.cli.commands.stack.listing import plain_entry, print_entries, says, summary
from editkit_core.cli.commands.stack.options import open_store, stack_option
from editkit_core.cli.output import json_option, print_json, printable
from editkit_core.errors import StackError

if TYPE_CHECKING:
    from editkit_core.stack.state import EntryState
    from editkit_core.stack.store import StackStore


@click.command("series", short_help="List all patches.")
@stack_option
@json_option
def series(folder: Path, as_json: bool) -> None:
    """List all patches, bottom first, those that are applied and those that wait."""
    store = open_store(folder)
    _list(store, store.state.entries, as_json)


@click.command("applied", short_help="List the applied patches.")
@stack_option
@json_option
def applied(folder: Path, as_json: bool) -> None:
    """List the applied patches, bottom first, up to the top."""
    store = open_store(folder)
    _list(store, store.state.applied, as_json)


@click.command("top")
@stack_option
@json_option
def top(folder: Path, as_json: bool) -> None:
    """Name the uppermost applied patch. The exit code is 1 when there is none."""
    store = open_store(folder)
    entry = store.state.top
    if entry is None:
        raise StackError(
            "No patch of the stack is applied. Push a patch file, or apply the next patch that "
            "waits with `editkit stack push`."
        )
    if as_json:
        print_json(plain_entry(store.state, entry))
    else:
        click.echo(printable(f"{entry.label}: {says(store, entry)}"))


def _list(store: StackStore, entries: Sequence[EntryState], as_json: bool) -> None:
    if as_json:
        print_json([plain_entry(store.state, entry) for entry in entries])
        return
    if entries:
        print_entries(store, entries)
    click.echo(summary(store.state))
