"""The command-line reference, from click."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from editkit_core.cli import editkit
from editkit_docs.docstrings import plain
from editkit_docs.markdown import cell, code, page, table

INTRO = """Every command takes `--help`. Commands that print something for people take `--json`.
`editkit --debug COMMAND` shows the traceback of an error. With `--json` an error is JSON too:
`{"error": {"code": ..., "message": ...}}`."""
EXIT_CODES = (
    ("0", "done"),
    ("1", "something in what was asked, or in its files, has to change (or a defect: EK-000)"),
    ("2", "the command was not understood"),
    ("3", "an installed plugin cannot be used"),
    ("4", "a patch was refused"),
    (
        "5",
        "a conflict: between patches, of a patch with what it stands on, or of two processes",
    ),
    ("6", "the patch or the stack is for another base"),
    ("7", "a patch file or a stack's folder is corrupt"),
    ("130", "stopped with Ctrl-C; nothing was half-written"),
)
MORE = "What a script may do about each: [Exit codes](exit-codes.md)."


def walk(
    command: click.Command = editkit, parent: click.Context | None = None, name: str = "editkit"
) -> Iterator[tuple[click.Context, click.Command]]:
    """Yield every command below ``command``, itself first, with its context."""
    context = click.Context(command, parent=parent, info_name=name)
    yield context, command
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from walk(found, context, child)


def commands_page() -> str:
    """Return the page."""
    blocks = [block for context, command in walk() for block in _command(context, command)]
    exits = table(("exit code", "meaning"), EXIT_CODES)
    return page("Command line", INTRO, *blocks, "## Exit codes", exits, MORE)


def _command(context: click.Context, command: click.Command) -> Iterator[str]:
    depth = len(context.command_path.split())
    if depth > 1:
        yield f"{'#' * min(depth, 4)} {context.command_path}"
    yield plain(inspect.cleandoc(command.help or ""))
    yield f"```text\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```"
    options = [param for param in command.params if isinstance(param, click.Option)]
    records = (option.get_help_record(context) for option in options)
    rows = [(code(names), cell(text)) for names, text in filter(None, records)]
    yield table(("option", "meaning"), rows)
