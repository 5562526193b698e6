"""What a change of a stack did, for people and for programs."""

from __future__ import annotations

import attrs
import click

from editkit_core.cli.commands.stack.changing import Changed, How
from editkit_core.cli.commands.stack.listing import Json, plain, summary, warning
from editkit_core.cli.output import print_json, printable


def tell(changed: Changed, how: How, verb: str, past: str, what: str) -> None:
    """Say what a change did, or with --dry-run would do, and how the stack is now."""
    if how.as_json:
        print_json(plain_change(changed))
    else:
        print_change(changed, verb, past, what)


def plain_change(changed: Changed) -> Json:
    """Return a change and how the stack is now, as JSON values."""
    return {
        "dry_run": changed.dry_run,
        "changed": changed.anything,
        "replaced": dict(changed.replaced),
        "awaiting_rebase": list(changed.awaiting),
        "conflicts": [attrs.asdict(conflict) for conflict in changed.conflicts],
        **plain(changed.document),
    }


def print_change(changed: Changed, verb: str, past: str, what: str) -> None:
    """Print a change and how the stack is now, for people."""
    state = changed.document.state
    if changed.before != state:
        click.echo(f"{f'Would {verb}' if changed.dry_run else past} {printable(what)}.")
    elif not changed.awaiting:
        click.echo(f"Nothing to {verb}: the stack is so already.")
    for old, new in changed.replaced.items():
        click.echo(f"Computed {old} again: it is {new} now.")
    for old in changed.awaiting:
        click.echo(f"Would compute {printable(state.entry(old).label)} again.")
    click.echo(summary(state))
    stale = "" if changed.awaiting else warning(state)
    for line in (*(conflict.detail for conflict in changed.conflicts), stale):
        if line:
            click.echo(f"Warning: {printable(line)}", err=True)
