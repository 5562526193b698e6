"""Write the generated pages into a folder: ``python -m editkit_docs docs``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from editkit_docs.commands import commands_page
from editkit_docs.hooks import hooks_page
from editkit_docs.methods import parameters_page
from editkit_docs.tables import errors_page, families_page, kinds_page, requests_page

PAGES: Mapping[str, Callable[[], str]] = {
    "errors/index.md": errors_page,
    "reference/commands.md": commands_page,
    "reference/families.md": families_page,
    "reference/hooks.md": hooks_page,
    "reference/kinds.md": kinds_page,
    "reference/parameters.md": parameters_page,
    "reference/requests.md": requests_page,
}


def write(folder: Path) -> None:
    """Write every generated page below ``folder``."""
    for name, make in PAGES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")


def stale(folder: Path) -> list[str]:
    """Return the generated pages below ``folder`` that are missing or not what the code says."""
    return [
        name
        for name, make in PAGES.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != make()
    ]


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` say which are stale and return 1."""
    folder = Path(arguments[-1])
    if "--check" not in arguments:
        write(folder)
        return 0
    old = stale(folder)
    for name in old:
        print(f"{folder / name} is not what the code says. Run scripts/docs.", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
