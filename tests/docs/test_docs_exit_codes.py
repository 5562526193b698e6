"""The page of exit codes names every one that an error has, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from editkit_docs.commands import EXIT_CODES
from editkit_docs.tables import error_classes

from editkit_core.cli import INTERRUPTED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "exit-codes.md"
DONE, USAGE = 0, 2


def on_the_page() -> list[int]:
    rows = re.findall(r"^\| (\d+) \| \S.* \| \S.* \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return [int(row) for row in rows]


def test_the_page_lists_what_the_program_can_end_with() -> None:
    raised = {kind.exit_code for kind in error_classes().values()}
    assert on_the_page() == sorted({DONE, USAGE, INTERRUPTED} | raised)


def test_the_command_reference_lists_the_same() -> None:
    assert [int(code) for code, _ in EXIT_CODES] == on_the_page()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("StackConflictError", 5),
        ("StaleEntryError", 5),
        ("StackLockedError", 5),
        ("BaseMismatchError", 6),
        ("PatchFormatError", 7),
        ("PatchDigestError", 7),
        ("StackDamagedError", 7),
        ("UnknownEntryError", 1),
    ],
)
def test_the_codes_that_scripts_rely_on_are_fixed(name: str, code: int) -> None:
    kinds = {kind.__name__: kind for kind in error_classes().values()}
    assert kinds[name].exit_code == code
