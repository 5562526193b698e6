"""``editkit import``: make patches of other tools' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click

from editkit_core.cli.commands.edit import check_free
from editkit_core.cli.options import load_editor, model_options
from editkit_core.cli.output import human_bytes, json_option, print_json, print_table


@click.group("import")
def command() -> None:
    """Make patches of other tools' files."""


@command.command("lora")
@click.argument("folder", type=click.Path(path_type=Path))
@model_options
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, help="The patch file to write."
)
@click.option("--name", default="", help="The patch's name for people.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--dry-run", is_flag=True, help="Check everything; write nothing.")
@json_option
def lora(
    folder: Path,
    out: Path,
    name: str,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **model: Any,  # Any: the model options as click gives them
) -> None:
    """Make a patch of a PEFT adapter folder, for the base given with --model.

    Only safetensors are read, never a pickle. What is no plain LoRA on projections is refused.
    """
    from editkit_core.interop.adapter import read_adapter
    from editkit_core.interop.lora_import import import_lora

    check_free(out, force=force)
    read_adapter(folder)  # a bad adapter should not cost the time of loading a model
    patch = import_lora(load_editor(**model).model, folder, name=name)
    if not dry_run:
        patch.save(out, force=force)
    entries = [
        {"parameter": entry.site.parameter, "rank": entry.rank, "norm": entry.norm()}
        for entry in patch.weight_entries
    ]
    if as_json:
        print_json(
            {
                "out": str(out),
                "id": patch.header.id,
                "base": attrs.asdict(patch.header.base)["model"],
                "entries": entries,
                "dry_run": dry_run,
            }
        )
        return
    rows = [(e.site.parameter, str(e.rank), f"{e.norm():.4g}") for e in patch.weight_entries]
    print_table(None, ("weight", "rank", "norm"), rows)
    said = "Would write" if dry_run else "Wrote"
    click.echo(
        f"{said} {out} ({human_bytes(patch.nbytes)} of factors, id {patch.header.id}) for "
        f"{patch.header.base.model}."
    )
