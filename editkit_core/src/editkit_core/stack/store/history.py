"""The folder ``history``: every committed version of ``stack.json``, by generation.

A version is written just before ``stack.json`` takes its content. One that is newer than
``stack.json`` was left by a writer that was stopped in between, and does not count.
"""

from __future__ import annotations

import re
from pathlib import Path

from editkit_core.errors import StackError
from editkit_core.stack.store.document import StackDocument, damaged, decode

FOLDER = "history"
_NAME = re.compile(r"([0-9]{6,})\.json")


class History:
    """The versions of a stack.

    Args:
        folder: The stack's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def path(self, generation: int) -> Path:
        """Return where a version is kept."""
        return self.folder / f"{generation:06d}.json"

    def generations(self) -> list[int]:
        """Return the generations that are there, in order, by name alone."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def read(self, generation: int) -> StackDocument:
        """Read one version strictly.

        Raises:
            StackError: There is no such version.
            StackDamagedError: It is damaged.
        """
        path = self.path(generation)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            known = self.generations()
            has = f"from {known[0]} to {known[-1]}" if known else "of no generation"
            raise StackError(
                f"There is no version {generation} of this stack; its history has versions {has}. "
                "`editkit stack history` lists them.",
                generation=generation,
            ) from None
        except OSError as error:
            raise damaged(path, f"it cannot be read ({error.strerror or error})") from error
        document = decode(text, path)
        if document.generation != generation:
            raise damaged(path, f"it is generation {document.generation}")
        return document
