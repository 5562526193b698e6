"""``editkit models``: the families editkit knows and the packaged models."""

from __future__ import annotations

import attrs
import click

from editkit_core.cli.output import json_option, print_json, print_table
from editkit_core.host import Host


@click.command("models")
@json_option
def command(as_json: bool) -> None:
    """List the model families, what can edit them, and the packaged models."""
    from editkit_core.models.families import BUILTIN_FAMILIES

    host = Host()
    families = {family.name: family for family in BUILTIN_FAMILIES}
    families |= host.registered("model_families")
    packaged = host.registered("models")
    methods = [listing.info for listing in host.list_methods() if listing.info]
    supports = {
        name: [m.name for m in methods if m.edits(family)] for name, family in families.items()
    }
    if as_json:
        print_json(
            {
                "families": [
                    attrs.asdict(family) | {"methods": supports[name]}
                    for name, family in families.items()
                ],
                "packaged": {f"editkit:{name}": str(path) for name, path in packaged.items()},
            }
        )
        return
    rows = [
        (
            name,
            ", ".join(f.model_types),
            ", ".join(stack.mlp_downs for stack in (f.encoder, f) if stack is not None),
            ", ".join(supports[name]) or "none installed",
        )
        for name, f in families.items()
    ]
    print_table(None, ("family", "model types", "edited weights", "methods"), rows)
    if packaged:
        click.echo("Packaged models: " + ", ".join(f"editkit:{name}" for name in sorted(packaged)))
    else:
        click.echo("Packaged models: none. Get one: pip install editkit-demo")
