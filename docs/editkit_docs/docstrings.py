"""Reads Google-style docstrings: the text before the sections, and the items of a section."""

from __future__ import annotations

import inspect
import re

_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Source|Differs|Yields):\s*")
_ITEM = re.compile(r"(\*{0,2}\w+): ?(.*)")
_ROLE = re.compile(r":\w+:`~?([^`]+)`")


def plain(text: str) -> str:
    """Turn the roles and double backquotes of a docstring into Markdown code."""
    return _ROLE.sub(r"`\1`", text).replace("``", "`")


def body(thing: object) -> str:
    """Return what a docstring says before its first section, as Markdown."""
    return plain(_parts(thing)[""])


def first_line(thing: object) -> str:
    """Return a docstring's first paragraph on one line."""
    return " ".join(body(thing).split("\n\n", 1)[0].split())


def section(thing: object, name: str) -> str:
    """Return a section's text on one line, or nothing."""
    return " ".join(plain(_parts(thing).get(name, "")).split())


def items(thing: object, name: str) -> dict[str, str]:
    """Return the items of a section, each on one line, by name; a class has those of its bases."""
    found: dict[str, str] = {}
    for base in thing.__bases__ if isinstance(thing, type) else ():
        found.update(items(base, name) if base.__module__.startswith("editkit") else {})
    last = ""
    for line in _parts(thing).get(name, "").splitlines():
        match = _ITEM.fullmatch(line)
        if match and not line.startswith(" "):
            last = match[1].lstrip("*")
            found[last] = match[2]
        elif last:
            found[last] += " " + line.strip()
    return {item: plain(text.strip()) for item, text in found.items()}


def _parts(thing: object) -> dict[str, str]:
    """Split a docstring into its body, under the empty name, and its sections."""
    parts: dict[str, list[str]] = {"": []}
    name = ""
    for line in inspect.cleandoc(getattr(thing, "__doc__", None) or "").splitlines():
        match = _SECTION.fullmatch(line)
        if match:
            name = match[1]
            parts[name] = []
        else:
            parts[name].append(line)
    return {name: inspect.cleandoc("\n" + "\n".join(lines)) for name, lines in parts.items()}
