"""``editkit stack push, pop, goto``: which patches are applied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editkit_core.cli.commands.stack.changing import How, change
from editkit_core.cli.commands.stack.options import (
    dry_run_option,
    force_option,
    open_store,
    patch_reference,
    rebase_option,
    stack_option,
)
from editkit_core.cli.commands.stack.pushing import name_of, push_patches, read_patch
from editkit_core.cli.commands.stack.telling import tell
from editkit_core.cli.output import json_option

if TYPE_CHECKING:
    from editkit_core.stack.state import Mode, StackState
    from editkit_core.stack.store import StackStore


@click.command("push", short_help="Put patch files on top, or apply the next that waits.")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@stack_option
@click.option("--all", "-a", "everything", is_flag=True, help="Apply all that wait.")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Factor on the change.")
@click.option(
    "--mode",
    type=click.Choice(["merge", "overlay"]),
    help="Write it into the weights (the default), or keep it beside them. A codebook is always "
    "beside them.",
)
@click.option("--disabled", is_flag=True, help="Add it without letting it count yet.")
@force_option
@rebase_option
@dry_run_option
@json_option
def push(
    files: tuple[Path, ...],
    folder: Path,
    everything: bool,
    scale: float,
    mode: Mode | None,
    disabled: bool,
    force: bool,
    rebase: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put patch files on top and apply them. Without a file, apply the next patch that waits."""
    how = How(force=force, rebase=rebase, dry_run=dry_run, as_json=as_json)
    if files and everything:
        raise click.UsageError("Give patch files, or --all for those that wait.")
    if not files and (scale != 1 or mode or disabled):
        raise click.UsageError(
            "--scale, --mode and --disabled go with a patch file. For a patch that is in the stack "
            "already there are `editkit stack scale`, `mode` and `disable`."
        )
    store = open_store(folder)
    if files:
        patches = [(name_of(file), read_patch(store, file)) for file in files]
        push_patches(store, patches, how, enabled=not disabled, scale=scale, mode=mode)
    else:
        _go(store, lambda s: len(s.entries) if everything else s.position + 1, how)


@click.command("pop", short_help="Unapply the top patch.")
@stack_option
@click.option("--all", "-a", "everything", is_flag=True, help="Unapply all.")
@force_option
@rebase_option
@dry_run_option
@json_option
def pop(
    folder: Path, everything: bool, force: bool, rebase: bool, dry_run: bool, as_json: bool
) -> None:
    """Unapply the top patch. It stays in the stack and waits; `remove` takes it out.

    A patch that the top one replaces shows again.
    """
    how = How(force=force, rebase=rebase, dry_run=dry_run, as_json=as_json)
    _go(open_store(folder), lambda s: 0 if everything else s.position - 1, how)


@click.command("goto", short_help="Apply or unapply until a patch is the top.")
@click.argument("reference", metavar="PATCH", type=patch_reference)
@stack_option
@force_option
@rebase_option
@dry_run_option
@json_option
def goto(
    reference: str, folder: Path, force: bool, rebase: bool, dry_run: bool, as_json: bool
) -> None:
    """Apply or unapply patches until PATCH is the top; `base` unapplies all."""
    from editkit_core.stack.operations import position_of

    how = How(force=force, rebase=rebase, dry_run=dry_run, as_json=as_json)
    _go(open_store(folder), lambda state: position_of(state, reference), how)


def _go(store: StackStore, position: Callable[[StackState], int], how: How) -> None:
    from editkit_core.stack.operations import go_to

    here, there = store.state.position, position(store.state)
    crossed = store.state.entries[min(here, there) : max(here, there)]
    names = ", ".join(entry.label for entry in crossed)
    verb, past = ("unapply", "Unapplied") if there < here or not there else ("apply", "Applied")
    changed = change(
        store, lambda state: go_to(state, position(state)), how, action=f"{verb} {names}".strip()
    )
    tell(changed, how, verb, past, names or "nothing")
