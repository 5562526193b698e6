"""``editkit patch apply`` and ``revert``: a patch in a copy of a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from editkit_core.cli.commands.patch.reading import file_argument, read_patch
from editkit_core.cli.options import model_folder
from editkit_core.cli.output import human_bytes, json_option, print_json

if TYPE_CHECKING:
    from editkit_core.patch.checkpoint_edit import FolderReport


@click.command("apply")
@file_argument
@click.option("--model", "-m", required=True, help="A folder, a hub id, or editkit:NAME.")
@click.option("--revision", default=None, help="A revision on the hub.")
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--force", is_flag=True, help="Replace the output folder.")
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@json_option
def apply(
    file: Path,
    model: str,
    revision: str | None,
    out: Path,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a copy of a checkpoint folder with the patch merged in. The source is never changed."""
    from editkit_core.patch.checkpoint_edit import write_patched

    patch = read_patch(file)
    source = model_folder(model, revision)
    done = write_patched(source, patch, out, force=force, dry_run=dry_run)
    _tell(done, "write", "Wrote", as_json)


@click.command("revert")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would be restored; write nothing.")
@json_option
def revert(folder: Path, dry_run: bool, as_json: bool) -> None:
    """Restore the weight files of a folder made by `patch apply`, bit for bit."""
    from editkit_core.patch.checkpoint_edit import revert_folder

    _tell(revert_folder(folder, dry_run=dry_run), "restore", "Restored", as_json)


def _tell(done: FolderReport, verb: str, past: str, as_json: bool) -> None:
    if as_json:
        print_json(attrs.asdict(done) | {"folder": str(done.folder)})
        return
    would = f"Would {verb}" if done.dry_run else past
    click.echo(
        f"{would} {done.folder} ({human_bytes(done.nbytes)}): {', '.join(done.tensors)} in "
        f"{', '.join(done.weights)}, patch {done.patch}."
    )
