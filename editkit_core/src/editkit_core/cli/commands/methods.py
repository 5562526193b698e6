"""``editkit methods``: what is installed, broken or incompatible."""

from __future__ import annotations

import click

from editkit_core.cli.output import json_option, print_json, print_table
from editkit_core.host import Host, Listing


@click.command("methods")
@json_option
def command(as_json: bool) -> None:
    """List the installed methods with their state, distribution and version."""
    host = Host()
    methods, plugins = host.list_methods(), host.list_plugins()
    if as_json:
        print_json(
            {"methods": [_plain(m) for m in methods], "plugins": [_plain(p) for p in plugins]}
        )
        return
    if methods:
        print_table(
            None, ("method", "state", "distribution", "what it is"), [_row(m) for m in methods]
        )
    else:
        click.echo("Methods: none installed. Get one, for example: pip install editkit-rome")
    if plugins:
        print_table(None, ("plugin", "state", "distribution", ""), [_row(p) for p in plugins])


def _row(listing: Listing) -> tuple[str, str, str, str]:
    what = listing.info.title if listing.info else listing.why
    return listing.name, listing.state, f"{listing.dist} {listing.version}", what


def _plain(listing: Listing) -> dict[str, object]:
    plain: dict[str, object] = {
        "name": listing.name,
        "state": listing.state,
        "distribution": listing.dist,
        "version": listing.version,
        "why": listing.why,
    }
    if listing.info is not None:
        info = listing.info
        plain |= {
            "title": info.title,
            "paper": info.paper,
            "api": info.api,
            "emits": list(info.emits),
            "families": list(info.families),
            "encoder_decoder": info.encoder_decoder,
            "batch": info.batch,
            "sequential": info.sequential,
            "trains": info.trains,
            "needs": list(info.needs),
        }
    return plain
