"""``editkit stack``: patches on top of each other, kept in a folder.

Modelled on quilt (series, applied, top, push, pop), git (gc, status, rebase) and alembic (history,
going back to a version).
"""

from __future__ import annotations

import click

from editkit_core.cli.commands.stack.checking import check, status
from editkit_core.cli.commands.stack.entries import disable, enable, move, remove, scale, set_mode
from editkit_core.cli.commands.stack.folder import doctor, gc, history, init
from editkit_core.cli.commands.stack.moving import goto, pop, push
from editkit_core.cli.commands.stack.rewriting import fold, rebase, split
from editkit_core.cli.commands.stack.showing import applied, series, top


class InOrder(click.Group):
    """A group whose help lists the commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands as they were added."""
        return list(self.commands)


@click.group("stack", cls=InOrder)
def command() -> None:
    """Keep several patches of one base in a folder: order them, take any of them out again.

    The model is the base plus the patches that are applied and enabled. PATCH is an id, the
    beginning of one, a name, or a number counted from 1 at the bottom.
    """


for _subcommand in (
    init,
    push,
    pop,
    goto,
    series,
    applied,
    top,
    enable,
    disable,
    move,
    scale,
    set_mode,
    remove,
    check,
    rebase,
    fold,
    split,
    status,
    doctor,
    gc,
    history,
):
    command.add_command(_subcommand)
