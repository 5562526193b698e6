"""``editkit stack init, doctor, gc, history``: the stack's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from editkit_core.cli.commands.stack.listing import plain, summary, warning
from editkit_core.cli.commands.stack.options import (
    DEFAULT_FOLDER,
    dry_run_option,
    open_store,
    stack_option,
)
from editkit_core.cli.output import (
    human_bytes,
    json_option,
    print_json,
    print_table,
    printable,
    progress_bar,
)
from editkit_core.errors import OutputExistsError, StackDamagedError

if TYPE_CHECKING:
    from editkit_core.stack.store import StackStore

_DAMAGED = StackDamagedError.exit_code


@click.command("init", short_help="Make an empty stack for a base.")
@click.option("--model", "-m", required=True, help="The base: a folder, a hub id, editkit:NAME.")
@click.option("--revision", default=None, help="A revision on the hub.")
@stack_option
@dry_run_option
@json_option
def init(model: str, revision: str | None, folder: Path, dry_run: bool, as_json: bool) -> None:
    """Make an empty stack for a base. The base's weights are hashed and never changed."""
    from editkit_core.cli.options import known_kinds, model_folder
    from editkit_core.stack.store import StackStore

    base = model_folder(model, revision)
    if dry_run:
        _plan(folder, model, base, as_json)
        return
    with progress_bar(off=as_json) as bar:
        store = StackStore.init(
            folder, model=model, base=base, revision=revision, kinds=known_kinds(), progress=bar
        )
    if as_json:
        print_json({"dry_run": False, "folder": str(folder), **plain(store.document)})
        return
    record = store.document.base
    click.echo(
        f"Made the stack {folder} for {record.public}: {len(record.files)} weights file(s), "
        f"digest {record.digest[:16]}…"
    )
    click.echo(f"Put patches on it: editkit stack push FILE{_at(folder)}")


@click.command("doctor", short_help="Check every file, and compute every tensor anew.")
@stack_option
@click.option("--full", is_flag=True, help="Hash every weights file of the base too.")
@dry_run_option
@json_option
def doctor(folder: Path, full: bool, dry_run: bool, as_json: bool) -> None:
    """Check the whole folder: every file's digest, and every changed tensor computed anew.

    editkit.lock is written anew where it lags behind, unless it is a dry run. Nothing else is
    changed. The exit code is 7 when something is damaged.
    """
    store = open_store(folder)
    with progress_bar(off=as_json) as bar:
        report = store.doctor(full=full, repair=not dry_run, progress=bar)
    if as_json:
        rows = [attrs.asdict(row) for row in report.rows]
        print_json({"ok": report.ok, "generation": report.generation, "rows": rows})
    else:
        states = {True: "ok", False: "FAILED"}
        print_table(
            None,
            ("check", "", "detail"),
            [
                (row.check, states[row.ok] if row.fatal or row.ok else "warning", row.detail)
                for row in report.rows
            ],
        )
        click.echo("The stack is sound." if report.ok else "The stack is damaged; see above.")
    if not report.ok:
        raise SystemExit(_DAMAGED)


@click.command("gc", short_help="Remove files that nothing refers to.")
@stack_option
@click.option("--drop-history", is_flag=True, help="Forget earlier versions and their patches too.")
@dry_run_option
@json_option
def gc(folder: Path, drop_history: bool, dry_run: bool, as_json: bool) -> None:
    """Remove files that nothing refers to: left by stopped writers, or of patches taken out."""
    report = open_store(folder).gc(dry_run=dry_run, drop_history=drop_history)
    if as_json:
        print_json(attrs.asdict(report))
        return
    if not report.files:
        click.echo("There is nothing to remove.")
        return
    for name in report.files:
        click.echo(f"  {printable(name)}")
    said = "Would remove" if dry_run else "Removed"
    click.echo(f"{said} {len(report.files)} file(s), {human_bytes(report.nbytes)}.")


@click.command("history", short_help="List every version, or go back to one.")
@stack_option
@click.option("--restore", type=click.IntRange(0), help="Make the stack what it was in a version.")
@dry_run_option
@json_option
def history(folder: Path, restore: int | None, dry_run: bool, as_json: bool) -> None:
    """List every version of the stack, or go back to one. Going back is a new version."""
    store = open_store(folder)
    if restore is not None:
        _restore(store, restore, dry_run, as_json)
        return
    versions = store.history()
    if as_json:
        print_json([{"time": document.time, **plain(document)} for document in versions])
        return
    rows = [
        (
            str(document.generation),
            document.time,
            document.action,
            f"{document.state.position} of {len(document.state.entries)}",
            (document.state.digest() or "base")[:16],
        )
        for document in versions
    ]
    print_table(None, ("version", "time", "what was done", "applied", "digest"), rows)


def _restore(store: StackStore, version: int, dry_run: bool, as_json: bool) -> None:
    before = store.generation
    document = store.restore(version, dry_run=dry_run)
    if as_json:
        changed = document.generation != before
        print_json({"dry_run": dry_run, "changed": changed, **plain(document)})
        return
    if document.generation == before:
        click.echo(f"The stack is as it was in version {version} already.")
    else:
        said = "Would go" if dry_run else "Went"
        click.echo(f"{said} back to version {version}, as version {document.generation}.")
    click.echo(summary(document.state))
    if stale := warning(document.state):
        click.echo(f"Warning: {stale}", err=True)


def _plan(folder: Path, model: str, base: Path, as_json: bool) -> None:
    """Say what init would do, having looked for what would keep it from doing it."""
    from editkit_core.patch.checkpoint import CheckpointSource
    from editkit_core.patch.checkpoint_folders import check_source

    check_source(base)
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise OutputExistsError(
            f"{folder} exists and is not an empty folder. Choose another --stack.",
            path=str(folder),
        )
    files = sorted(CheckpointSource(base).files)
    if as_json:
        print_json({"dry_run": True, "folder": str(folder), "model": model, "files": files})
        return
    click.echo(f"Would make the stack {folder} for {model}, on {', '.join(files)} in {base}.")


def _at(folder: Path) -> str:
    return "" if str(folder) == DEFAULT_FOLDER else f" --stack {folder}"
