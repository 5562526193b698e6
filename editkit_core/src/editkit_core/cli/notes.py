"""What the core logs, as lines on standard error; other libraries are kept quiet."""

from __future__ import annotations

import logging

import click

from editkit_core.cli.output import printable

_CHATTY = ("torchao", "torch.utils._pytree")  # transformers imports torchao where it is installed


class _Notes(logging.Handler):
    """Prints a line for every record."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        click.echo(f"Note: {printable(record.getMessage())}", err=True)


def show_notes() -> None:
    """Print what the logger ``editkit`` says from now on; calling it again changes nothing."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logger = logging.getLogger("editkit")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Notes) for handler in logger.handlers):
        logger.addHandler(_Notes())
