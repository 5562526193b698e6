"""``editkit materialize``: a plain checkpoint with patches merged in."""

from __future__ import annotations

from pathlib import Path

import attrs
import click

from editkit_core.cli.chosen import Chosen, choose
from editkit_core.cli.output import human_bytes, json_option, print_json, printable, progress_bar


@click.command("materialize")
@click.option(
    "--patch",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A patch file to merge. May be repeated.",
)
@click.option("--stack", "-s", type=click.Path(path_type=Path), help="Merge what is active in it.")
@click.option(
    "--model", "-m", help="A folder, a hub id, or editkit:NAME. A stack knows its own base."
)
@click.option("--revision", default=None, help="A revision on the hub.")
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--force", is_flag=True, help="Replace the output folder.")
@click.option("--dry-run", is_flag=True, help="Check everything; write nothing.")
@json_option
def command(
    files: tuple[Path, ...],
    stack: Path | None,
    model: str | None,
    revision: str | None,
    out: Path,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a plain checkpoint with patches merged in, sharded like its base.

    Nothing of editkit is left in it, and it cannot be turned back; `editkit patch apply` writes
    one that can.
    """
    chosen = choose(files, stack, model, revision)
    write_checkpoint(chosen, out, force=force, dry_run=dry_run, as_json=as_json)


def write_checkpoint(
    chosen: Chosen, out: Path, *, force: bool, dry_run: bool, as_json: bool
) -> None:
    """Merge patches into a copy of their base and say what was done.

    Raises:
        click.UsageError: The base is not known.
        EditkitError: They cannot be merged or written.
    """
    from editkit_core.patch.materialize import materialize

    source = chosen.folder()
    if source is None:
        raise click.UsageError("Give the base with --model.")
    with progress_bar(off=as_json) as bar:
        done = materialize(source, chosen.patches, out, force=force, dry_run=dry_run, progress=bar)
    if as_json:
        print_json(attrs.asdict(done) | {"folder": str(done.folder), "notes": chosen.notes})
        return
    said = "Would write" if dry_run else "Wrote"
    click.echo(
        f"{said} {out} ({human_bytes(done.nbytes)}): {', '.join(done.tensors)} in "
        f"{', '.join(done.weights)}, {len(done.patches)} patch(es)."
    )
    if done.left_out:
        click.echo(f"Left out, because they hold the base's weights: {', '.join(done.left_out)}.")
    for note in chosen.notes:
        click.echo(f"Note: {printable(note)}")
