"""``editkit.lock``: the stack as TOML, to be shared, compared and kept under version control.

It follows from ``stack.json`` and never leads: when the two differ, it is the one to write anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.exceptions

from editkit_core.stack.state import EntryState
from editkit_core.stack.store.document import StackDocument

LOCK_FILE = "editkit.lock"
SPEC = "editkit.lock/1"
_COMMENT = "Written by editkit from stack.json; change the stack with `editkit stack`."


def encode_lock(document: StackDocument) -> bytes:
    """Return the text of ``editkit.lock``."""
    text = tomlkit.document()
    text.add(tomlkit.comment(_COMMENT))
    text.update(_content(document))
    return tomlkit.dumps(text).encode()


def lock_problem(path: Path, document: StackDocument) -> str | None:
    """Return what is wrong with an ``editkit.lock``, or None when it agrees with the stack."""
    try:
        found = tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except FileNotFoundError:
        return "is missing"
    except (OSError, UnicodeDecodeError, tomlkit.exceptions.TOMLKitError) as error:
        return f"cannot be read ({error})"
    if found == _content(document):
        return None
    generation = found.get("generation")
    if generation != document.generation:
        return f"is of generation {generation!r:.40}, the stack is at {document.generation}"
    return "says something else than stack.json"


def _content(document: StackDocument) -> dict[str, Any]:  # Any: TOML values
    base, state = document.base, document.state
    return _without_none(
        {
            "spec": SPEC,
            "generation": document.generation,
            "digest": state.digest(),
            "base": _without_none(
                {
                    "model": base.public,
                    "revision": base.revision,
                    "digest": base.digest,
                    "config_digest": base.config_digest,
                }
            ),
            "patch": [
                _entry(entry, applied=place < state.position)
                for place, entry in enumerate(state.entries)
            ],
        }
    )


def _entry(entry: EntryState, *, applied: bool) -> dict[str, Any]:  # Any: TOML values
    return {
        "id": entry.id,
        "name": entry.name,
        "file_sha256": entry.file_sha256,
        "content_digest": entry.content_digest,
        "enabled": entry.enabled,
        "applied": applied,
        "scale": float(entry.scale),
        "mode": entry.mode,
    }


def _without_none(values: dict[str, Any]) -> dict[str, Any]:  # Any: TOML values
    return {key: value for key, value in values.items() if value is not None}
