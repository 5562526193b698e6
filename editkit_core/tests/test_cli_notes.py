"""What the core logs is shown by the command line, once, on standard error."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from editkit_core.cli.notes import show_notes


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger("editkit")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_a_note_is_printed_once_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    show_notes()
    show_notes()
    logging.getLogger("editkit").info("It goes beside the weights.")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "Note: It goes beside the weights.\n")


def test_a_note_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_notes()
    logging.getLogger("editkit").warning("named \x1b[2J")
    assert capsys.readouterr().err == "Note: named \\x1b[2J\n"
