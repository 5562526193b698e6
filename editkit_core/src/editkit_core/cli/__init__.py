"""The command line. Each command's module is imported when it is used, so that help is quick."""

from __future__ import annotations

import contextlib
import json
import keyword
import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING

import click

from editkit_core import __version__
from editkit_core.cli.notes import show_notes
from editkit_core.cli.output import printable
from editkit_core.errors import EditkitError

if TYPE_CHECKING:
    from editkit_core.cli.plugins import PluginCommands

COMMANDS = {
    "bench": "Edit a whole data set and measure every edit; resumable.",
    "compare": "Show how two runs differ, request by request.",
    "datasets": "List the formats of data sets, and say what a data set holds.",
    "edit": "Change one or more facts and write the patch.",
    "export": "Write patches as a LoRA adapter or a plain checkpoint.",
    "generate": "Continue a prompt, with or without a patch.",
    "import": "Make patches of other tools' files.",
    "materialize": "Write a plain checkpoint with patches merged in.",
    "methods": "List the installed methods.",
    "models": "List the model families and packaged models.",
    "patch": "Show, verify, apply and revert patch files.",
    "report": "Show what runs measured: a page, Markdown, CSV.",
    "stack": "Keep patches on top of each other; take any of them out.",
    "stats": "Collect key statistics from a text corpus.",
    "trace": "Trace where a model recalls a fact, and draw it.",
    "train": "Train an editor, for methods that edit with one; resumable.",
}
PLUGIN_COMMANDS = {"demo": "editkit-demo"}  # commands of our own plugins, to name the remedy
INTERRUPTED = 130
_META_KEY = "editkit.plugins"


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the core's commands and of those that plugins add."""
        return sorted({*COMMANDS, *_plugins(ctx).factories})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return one command."""
        return _command(name) if name in COMMANDS else _plugins(ctx).make(name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the core's commands from the table above, without importing them."""
        plugins = _plugins(ctx)
        rows = {name: plugins.short_help(name) for name in plugins.factories} | COMMANDS
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))
        if plugins.broken:
            with formatter.section("Broken plugins (editkit methods says more)"):
                formatter.write_dl([(listing.dist, listing.why) for listing in plugins.broken])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the closest command when there is none of that name."""
        from editkit_core.errors import did_you_mean

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            message = error.message
            if args and "Did you mean" not in message:
                message += did_you_mean(args[0], self.list_commands(ctx))
            if args and args[0] in PLUGIN_COMMANDS:
                message += f" Install what brings it: pip install {PLUGIN_COMMANDS[args[0]]}."
            broken = ", ".join(listing.dist for listing in _plugins(ctx).broken)
            if broken:
                message += f" Plugins that are broken add no commands: {broken}."
            raise click.UsageError(message, ctx) from error


def _command(name: str) -> click.Command:
    module = f"{name}_" if keyword.iskeyword(name) else name
    command = import_module(f"editkit_core.cli.commands.{module}").command
    assert isinstance(command, click.Command)
    return command


def _plugins(ctx: click.Context) -> PluginCommands:
    """Return the plugins' commands, looked up once a run."""
    from editkit_core.cli.plugins import PluginCommands

    if _META_KEY not in ctx.meta:
        ctx.meta[_META_KEY] = PluginCommands.find()
    found = ctx.meta[_META_KEY]
    assert isinstance(found, PluginCommands)
    return found


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="editkit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def editkit(debug: bool) -> None:
    """Correct what a language model believes, and ship the correction as a small file."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with 0, or as the error says.

    Exit codes: 1 the user's mistake, 2 usage, 3 a broken plugin, 4 a patch refused, 5 a conflict,
    6 the patch is for another base, 7 a file is corrupt, 130 stopped.
    """
    show_notes()
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left, as `editkit methods | head -1` does
        _drop_output()
        code = 1
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        code = editkit.main(arguments, prog_name="editkit", standalone_mode=False)
    except click.ClickException as error:
        return _report_usage(error, arguments)
    except EditkitError as error:
        return _report(error, error, arguments)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nStopped. Nothing was half-written.", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        told = EditkitError(
            f"Unexpected {type(error).__name__}: {error}. This is a defect of editkit or of a "
            "plugin, not of your input; editkit --debug … shows where."
        )
        return _report(told, error, arguments)
    return code if isinstance(code, int) else 0  # an int when the command called ctx.exit


def _report(told: EditkitError, cause: Exception, arguments: list[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exception(cause)
    if "--json" in arguments:
        click.echo(json.dumps({"error": {"code": told.code, "message": told.message}}))
    else:
        click.echo(f"Error: {printable(str(told))}", err=True)
    return told.exit_code


def _report_usage(error: click.ClickException, arguments: list[str]) -> int:
    if "--json" in arguments:
        click.echo(json.dumps({"error": {"code": "usage", "message": error.format_message()}}))
    else:
        error.show()
    return error.exit_code


def _drop_output() -> None:
    """Let the interpreter's last flush go nowhere instead of complaining."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
