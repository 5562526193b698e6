"""``editkit stack status, check``: what needs a look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from editkit_core.cli.commands.stack.listing import plain, summary
from editkit_core.cli.commands.stack.options import open_store, stack_option
from editkit_core.cli.commands.stack.pushing import read_patch
from editkit_core.cli.commands.stack.recomputing import keep
from editkit_core.cli.output import json_option, print_json, print_table, printable
from editkit_core.errors import EditkitError, StackConflictError

if TYPE_CHECKING:
    from editkit_core.stack.conflicts import Conflict
    from editkit_core.stack.state import StackState
    from editkit_core.stack.store import StackStore

_CONFLICT = StackConflictError.exit_code


@click.command("status", short_help="Say how the stack is, and what needs a look.")
@stack_option
@json_option
def status(folder: Path, as_json: bool) -> None:
    """Say what the stack stands on, how much of it is applied, and what needs a look."""
    from editkit_core.stack.store.lock_file import LOCK_FILE, lock_problem

    store = open_store(folder)
    problem = lock_problem(folder / LOCK_FILE, store.document)
    try:
        conflicts, damage = _conflicts(store), None
    except EditkitError as error:
        conflicts, damage = (), error.message
    if as_json:
        print_json(
            {
                **plain(store.document),
                "stale": [entry.id for entry in store.state.stale],
                "conflicts": [attrs.asdict(conflict) for conflict in conflicts],
                "damage": damage,
                "lock_file": problem or "agrees",
            }
        )
        return
    for name, told in _rows(store, conflicts, damage, problem):
        click.echo(f"{name:<10} {printable(told)}")


@click.command("check", short_help="Explain conflicts, crosstalk and stale patches.")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@stack_option
@click.option(
    "--threshold",
    type=click.FloatRange(0),
    help="Report crosstalk from this share on; by default what a push reports.",
)
@json_option
def check(files: tuple[Path, ...], folder: Path, threshold: float | None, as_json: bool) -> None:
    """Explain conflicts, crosstalk and stale patches among those that count.

    With patch FILES it looks as if these were pushed. The exit code is 5 when a push would be
    refused for what is found.
    """
    store = open_store(folder)
    state = _with_files(store, files)
    conflicts = _conflicts(store, state, threshold)
    rows = [_row(state, conflict) for conflict in conflicts]
    rows += [
        (
            "stale",
            "yes",
            f"#{state.index(entry.id) + 1}",
            f"{entry.label} does not stand on what it was computed on.",
        )
        for entry in state.stale
    ]
    fatal = bool(state.stale) or any(conflict.fatal for conflict in conflicts)
    if as_json:
        stale = [entry.id for entry in state.stale]
        found = [attrs.asdict(conflict) for conflict in conflicts]
        print_json({"ok": not fatal, "conflicts": found, "stale": stale})
    elif rows:
        print_table(None, ("what", "refused", "patches", "detail"), rows)
        click.echo(_advice(state, conflicts))
    else:
        click.echo(
            f"No conflicts and nothing stale among {len(state.effective)} patches that count."
        )
    if fatal:
        raise SystemExit(_CONFLICT)


def _with_files(store: StackStore, files: Sequence[Path]) -> StackState:
    """Return the state with patch files pushed on it, in memory only."""
    from editkit_core.stack.operations import push
    from editkit_core.stack.store.results import check_fit

    state = store.state
    patches = [read_patch(store, file) for file in files]
    if patches:
        check_fit(store.source(), patches)
    for patch in patches:
        state = push(state, keep(store, patch))
    return state


def _conflicts(
    store: StackStore, state: StackState | None = None, threshold: float | None = None
) -> tuple[Conflict, ...]:
    from editkit_core.stack.conflicts import CROSSTALK, find_conflicts

    pairs = [(entry, store.patch(entry)) for entry in (state or store.state).active]
    return find_conflicts(pairs, threshold=CROSSTALK if threshold is None else threshold)


def _rows(
    store: StackStore, conflicts: Sequence[Conflict], damage: str | None, problem: str | None
) -> list[tuple[str, str]]:
    document, state = store.document, store.state
    base = document.base
    revision = f" @ {base.revision}" if base.revision else ""
    fatal = sum(conflict.fatal for conflict in conflicts)
    found = "none"
    if conflicts:
        found = f"{len(conflicts)}, {fatal} of them to be refused: editkit stack check"
    return [
        ("Stack", f"{store.folder}, version {document.generation} ({document.action})"),
        ("Base", f"{base.model}{revision}, digest {base.digest[:16]}…"),
        ("Patches", summary(state)),
        ("Digest", state.digest() or "none: the bare base"),
        ("Stale", ", ".join(entry.label for entry in state.stale) or "none"),
        ("Conflicts", found if damage is None else f"not known. {damage}"),
        ("Lock file", "agrees" if problem is None else f"{problem}: editkit stack doctor"),
    ]


def _row(state: StackState, conflict: Conflict) -> tuple[str, str, str, str]:
    places = {entry.id: f"#{place + 1}" for place, entry in enumerate(state.entries)}
    pair = (places.get(conflict.lower, conflict.lower), places.get(conflict.upper, conflict.upper))
    kind = conflict.kind.replace("_", " ")
    return (kind, "yes" if conflict.fatal else "no", ", ".join(pair), conflict.detail)


def _advice(state: StackState, conflicts: Sequence[Conflict]) -> str:
    said = []
    if any(conflict.fatal for conflict in conflicts):
        said.append(
            "Of two patches in conflict, disable or remove one; a push of such a patch is refused "
            "unless forced."
        )
    elif conflicts:
        said.append("None of it is refused. Measure the edits together before you ship them.")
    if state.stale:
        said.append("Compute stale patches anew with `editkit stack rebase`.")
    return " ".join(said)
