"""The members of this repository, from ``requirements-dev.txt``."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_EDITABLE = re.compile(r"-e \./([\w/]+)(\[.*\])?")


def member_folders() -> tuple[Path, ...]:
    """Return the folder of every member."""
    lines = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    return tuple(ROOT / match[1] for line in lines if (match := _EDITABLE.fullmatch(line.strip())))


def member_names() -> frozenset[str]:
    """Return the distribution name of every member."""
    return frozenset(folder.name.replace("_", "-") for folder in member_folders())
