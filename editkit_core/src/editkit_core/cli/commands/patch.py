"""``editkit patch``: show, verify, apply and revert patch files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from editkit_core.cli.options import load_editor, optional_model_options
from editkit_core.cli.output import human_bytes, json_option, print_json, print_table, printable

if TYPE_CHECKING:
    from editkit_core.patch.checkpoint_edit import FolderReport
    from editkit_core.patch.verify import VerifyRow


@click.group("patch")
def command() -> None:
    """Show, verify, apply and revert patch files."""


@command.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def show(file: Path, as_json: bool) -> None:
    """Say what a patch does, what it fits and who made it. Reads it strictly; needs no model."""
    from editkit_core.patch.describe import describe
    from editkit_core.patch.format import Patch

    described = describe(Patch.load(file)) | {"file_bytes": file.stat().st_size}
    if as_json:
        print_json(described)
    else:
        _show(file, described)


def echo(line: str) -> None:
    """Print a line that may hold text from a foreign file."""
    click.echo(printable(line))


def _show(file: Path, it: dict[str, Any]) -> None:  # Any: JSON values
    echo(f"{file}: {human_bytes(it['file_bytes'])}, id {it['id']}, made {it['created']}")
    echo(f"  content  {it['content_digest']}")
    method, base = it["method"], it["base"]
    echo(f"  method   {method['name']} ({method['dist']} {method['version']})")
    echo(f"  base     {base['model']}{' @ ' + base['revision'] if base['revision'] else ''}")
    for name, tensor in base["tensors"].items():
        shape = " x ".join(map(str, tensor["shape"]))
        echo(f"           {name} {shape} {tensor['dtype']} {tensor['sha256'][:16]}…")
    echo(f"  seed     {it['seed']}, {it['contexts']} contexts")
    edits = [
        (
            e["prompt"].replace("{}", e["subject"]),
            e["subject"],
            e.get("target_true") or "",
            e["target_new"],
        )
        for e in it["edits"]
    ]
    print_table(None, ("prompt", "subject", "was", "now"), edits)
    entries = [
        (
            e["kind"],
            e["parameter"],
            " x ".join(map(str, e["shape"])),
            str(e["rank"]),
            f"{e['norm']:.4g}",
            f"{100 * e['relative_norm']:.2f} %" if e["relative_norm"] else "",
        )
        for e in it["entries"]
    ]
    print_table(None, ("kind", "weight", "shape", "rank", "norm", "of the weight's"), entries)


@command.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@optional_model_options
@json_option
def verify(file: Path, as_json: bool, **model: Any) -> None:  # Any: the model options
    """Check a patch file by itself and, with --model, that it fits that base."""
    from editkit_core.patch.verify import verify as check

    editor = load_editor(**model) if model["model"] else None
    report = check(file, editor.model if editor else None)
    if as_json:
        print_json({"ok": report.ok} | attrs.asdict(report))
    else:
        rows = [(row.check, _state(row), row.detail) for row in report.rows]
        print_table(None, ("check", "", "detail"), rows)
    if not report.ok:
        raise SystemExit(4)


def _state(row: VerifyRow) -> str:
    return "ok" if row.ok else "FAILED" if row.fatal else "warning"


@command.command("apply")
@click.argument("file", type=click.Path(path_type=Path))
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
    from editkit_core.patch.format import Patch

    patch = Patch.load(file)
    source = _folder(model, revision)
    done = write_patched(source, patch, out, force=force, dry_run=dry_run)
    _tell(done, "write", "Wrote", as_json)


@command.command("revert")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would be restored; write nothing.")
@json_option
def revert(folder: Path, dry_run: bool, as_json: bool) -> None:
    """Restore the weight files of a folder made by `patch apply`, bit for bit."""
    from editkit_core.patch.checkpoint_edit import revert_folder

    _tell(revert_folder(folder, dry_run=dry_run), "restore", "Restored", as_json)


def _folder(model: str, revision: str | None) -> Path:
    """Return the local folder of a checkpoint: packaged, on disk, or the hub's copy of it."""
    from editkit_core.host import Host
    from editkit_core.models.loading import find_folder

    return find_folder(model, revision=revision, packaged=Host().registered("models"))


def _tell(done: FolderReport, verb: str, past: str, as_json: bool) -> None:
    if as_json:
        print_json(attrs.asdict(done) | {"folder": str(done.folder)})
        return
    would = f"Would {verb}" if done.dry_run else past
    click.echo(
        f"{would} {done.folder} ({human_bytes(done.nbytes)}): {', '.join(done.tensors)} in "
        f"{', '.join(done.weights)}, patch {done.patch}."
    )
