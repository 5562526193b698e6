"""The patches a command is about: files, or what is active in a stack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from editkit_core.errors import StackConflictError, StackError

if TYPE_CHECKING:
    from editkit_core.patch.format import Patch
    from editkit_core.stack.store import StackStore


@attrs.frozen(kw_only=True, eq=False)
class Chosen:
    """Patches with their scales, and the base they are for as far as it is known.

    Attributes:
        patches: The patches, with the factor on each.
        notes: What a person should know about them.
        model: The base that was named on the command line.
        revision: Its hub revision.
        store: The stack they are from.
    """

    patches: tuple[tuple[Patch, float], ...]
    notes: tuple[str, ...] = ()
    model: str | None = None
    revision: str | None = None
    store: StackStore | None = None

    def folder(self) -> Path | None:
        """Return the base's folder: of the model that was named, else of the stack."""
        from editkit_core.cli.options import model_folder

        if self.model is not None:
            return model_folder(self.model, self.revision)
        return None if self.store is None else self.store.source().folder


def choose(
    files: tuple[Path, ...], stack: Path | None, model: str | None, revision: str | None
) -> Chosen:
    """Load the patches that a command line names.

    Raises:
        click.UsageError: It names files and a stack, or neither.
        StackError: The stack has no active patch.
        EditkitError: A file or the stack cannot be read.
    """
    if bool(files) == (stack is not None):
        raise click.UsageError("Give patch files, or a stack with --stack.")
    if stack is not None:
        return _from_stack(stack, model, revision)
    from editkit_core.cli.options import known_kinds
    from editkit_core.patch.format import Patch

    kinds = known_kinds()
    patches = tuple((Patch.load(file, kinds=kinds), 1.0) for file in files)
    return Chosen(patches=patches, notes=_ground(patches), model=model, revision=revision)


def _from_stack(folder: Path, model: str | None, revision: str | None) -> Chosen:
    from editkit_core.cli.options import known_kinds
    from editkit_core.stack.store import StackStore

    store = StackStore.open(folder, kinds=known_kinds())
    active = store.state.effective
    if not active:
        raise StackError(
            f"No patch of the stack {folder} is active, so there is nothing to write. Push one, "
            "or enable one."
        )
    notes = [f"{e.label} does not stand on what it was computed on." for e in store.state.stale]
    notes += [
        f"{e.label} is an overlay in the stack; here it is merged." for e in active
        if e.mode == "overlay"
    ]  # fmt: skip
    return Chosen(
        patches=tuple((store.patch(entry), entry.scale) for entry in active),
        notes=tuple(notes),
        model=model,
        revision=revision,
        store=store,
    )


def _ground(patches: tuple[tuple[Patch, float], ...]) -> tuple[str, ...]:
    """Say so when patches were computed on others that are not given."""
    from editkit_core.patch.folded_base import common_ground

    try:
        complete = common_ground(patches) is None
    except StackConflictError:
        complete = False
    if complete:
        return ()
    return ("Not all patches are given that these were computed on.",)
