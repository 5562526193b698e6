"""``editkit stack rebase, fold, split``: put other patches in the place of some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from editkit_core.cli.commands.stack.changing import How, change
from editkit_core.cli.commands.stack.options import (
    dry_run_option,
    force_option,
    open_store,
    patch_reference,
    stack_option,
)
from editkit_core.cli.commands.stack.recomputing import keep, patches_of
from editkit_core.cli.commands.stack.telling import tell
from editkit_core.cli.output import json_option
from editkit_core.errors import StackError

if TYPE_CHECKING:
    from editkit_core.stack.state import EntryState, StackState
    from editkit_core.stack.store import StackStore


@click.command("rebase", short_help="Compute stale patches again.")
@click.argument("references", metavar="[PATCH]...", nargs=-1, type=patch_reference)
@stack_option
@click.option(
    "--editor",
    "trained",
    type=click.Path(path_type=Path),
    help="The trained editor, for patches of a method that edits with one.",
)
@force_option
@dry_run_option
@json_option
def rebase(
    references: tuple[str, ...],
    folder: Path,
    trained: Path | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compute stale patches, or those named, again on the patches that are now below them.

    A patch holds its requests, parameters and seed; its method must be installed.
    """
    how = How(force=force, rebase=True, dry_run=dry_run, as_json=as_json, trained=trained)
    store = open_store(folder)
    state = store.state
    chosen = [state.entry(reference) for reference in references] or list(state.stale)
    waiting = [entry for entry in chosen if entry not in state.active]
    if waiting:
        raise StackError(
            f"{waiting[0].label} does not count now, so there is nothing to compute it on. Apply "
            "and enable it first."
        )
    names = ", ".join(entry.label for entry in chosen)
    ids = [entry.id for entry in chosen]
    changed = change(store, lambda now: now, how, action=f"rebase {names}", rebased=ids)
    tell(changed, how, "rebase", "Rebased", names)


@click.command("fold", short_help="Make one patch of several.")
@click.argument("references", metavar="[PATCH]...", nargs=-1, type=patch_reference)
@stack_option
@click.option("--name", default="", help="A name for the new patch.")
@click.option("--compress", is_flag=True, help="Add factors up: smaller, cannot be split again.")
@force_option
@dry_run_option
@json_option
def fold(
    references: tuple[str, ...],
    folder: Path,
    name: str,
    compress: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make one patch of several, or of all that count, in the place of the lowest of them."""
    from editkit_core.patch.fold import fold as folded

    how = How(force=force, dry_run=dry_run, as_json=as_json)
    store = open_store(folder)
    state = store.state
    chosen = _foldable(state, references)
    ids = {entry.id for entry in chosen}
    patches = patches_of(store, state.effective)
    below = [(patches[e.id], e.scale) for e in state.effective if e.id not in ids]
    parts = [(patches[entry.id], entry.scale) for entry in chosen]
    made = folded(parts, name=name, compress=compress, below=below)
    new = attrs.evolve(keep(store, made), mode=chosen[0].mode)
    what = f"{', '.join(entry.label for entry in chosen)} into {new.label}"
    _substitute(store, chosen, [new], how, ("fold", "Folded"), what)


@click.command("split", short_help="Make several patches of one.")
@click.argument("reference", metavar="PATCH", type=patch_reference)
@stack_option
@force_option
@dry_run_option
@json_option
def split(reference: str, folder: Path, force: bool, dry_run: bool, as_json: bool) -> None:
    """Put the patches that a patch is made of in its place: a fold's parts, or one an edit."""
    from editkit_core.patch.fold import split as parts_of

    how = How(force=force, dry_run=dry_run, as_json=as_json)
    store = open_store(folder)
    entry = store.state.entry(reference)
    ground = [store.state.entry(name) for name in entry.depends_on]
    held = patches_of(store, [*ground, entry])
    parts = parts_of(held[entry.id], below=[(held[e.id], e.scale) for e in ground])
    new = [
        attrs.evolve(
            keep(store, part),
            name=part.header.name or (f"{entry.name}-{number}" if entry.name else ""),
            enabled=entry.enabled,
            scale=entry.scale,
            mode=entry.mode,
        )
        for number, part in enumerate(parts, start=1)
    ]
    what = f"{entry.label} into {', '.join(made.label for made in new)}"
    _substitute(store, [entry], new, how, ("split", "Split"), what)


def _foldable(state: StackState, references: Sequence[str]) -> list[EntryState]:
    """Return the entries to fold, bottom first.

    Raises:
        StackError: There are fewer than two, one does not count, or their modes differ.
    """
    named = {state.entry(reference).id for reference in references}
    chosen = [entry for entry in state.entries if entry.id in named] or list(state.effective)
    idle = [entry for entry in chosen if entry not in state.effective]
    if idle:
        why = "is not applied and enabled"
        if idle[0].id in state.shadowed:
            why = "is replaced by a newer patch"
        raise StackError(
            f"{idle[0].label} {why}, so folding it in would change what the model says. Apply and "
            "enable it first, or leave it out."
        )
    if len(chosen) < 2:
        raise StackError(
            f"Folding takes two patches or more; here {len(chosen) or 'none'} would be folded."
        )
    if len({entry.mode for entry in chosen}) > 1:
        raise StackError(
            "Some of these patches are merged and some overlaid; one patch has one mode. Change it "
            "first with `editkit stack mode`."
        )
    return chosen


def _substitute(
    store: StackStore,
    gone: Sequence[EntryState],
    new: Sequence[EntryState],
    how: How,
    words: tuple[str, str],
    what: str,
) -> None:
    """Put new entries in the place of the lowest of those that go, and say so."""

    def operation(state: StackState) -> StackState:
        return _substituted(state, [entry.id for entry in gone], new)

    changed = change(store, operation, how, action=f"{words[0]} {what}")
    tell(changed, how, *words, what)


def _substituted(state: StackState, gone: Sequence[str], new: Sequence[EntryState]) -> StackState:
    from editkit_core.stack import operations
    from editkit_core.stack.state import StackState

    made = [entry.id for entry in new]
    state = attrs.evolve(state, entries=operations.taking_over(state.entries, gone, made))
    place = min(state.index(name) for name in gone)
    below = StackState(entries=state.entries[:place], position=place)
    for entry in new:
        below = operations.push(below, entry)
    rest = [entry for entry in state.entries[place:] if entry.id not in gone]
    above = sum(entry in state.applied for entry in rest)
    position = len(below.entries) + above if place < state.position else state.position
    return StackState(entries=[*below.entries, *rest], position=position)
