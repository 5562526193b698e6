"""Replies that are known already: by the model's fingerprint and the ask.

The model before an edit is asked the same by every method and every edit, so its replies are
computed once. In a folder they outlive the process: one JSON-lines file a fingerprint, appended to,
where a line cut short by a crash is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from editkit_core.errors import InvalidParameterError, WriteFailedError
from editkit_core.metrics.ask import Ask, Reply, from_plain, to_plain

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

_SCORING = "1"  # raise when a reply to the same ask changes its meaning


class ReplyCache:
    """Replies of any number of models.

    Args:
        folder: Where to keep them; None keeps them in memory only.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._shelves: dict[str, Shelf] = {}

    def shelf(self, model: EditableModel) -> Shelf | None:
        """Return the replies of a model as it is now; None while hooks are on its modules.

        What a hook does, no fingerprint tells; overlays are such hooks.
        """
        if _has_hooks(model):
            return None
        fingerprint = model_fingerprint(model)
        if fingerprint not in self._shelves:
            name = None if self._folder is None else self._folder / f"{fingerprint[:32]}.jsonl"
            self._shelves[fingerprint] = Shelf(name)
        return self._shelves[fingerprint]


class Shelf(Mapping[str, Reply]):
    """The replies of one model, by the ask's digest.

    Args:
        path: A JSON-lines file, or None.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._replies = dict(_read(path)) if path is not None else {}
        self._new: list[str] = []

    def __getitem__(self, digest: str) -> Reply:
        return self._replies[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self._replies)

    def __len__(self) -> int:
        return len(self._replies)

    def keep(self, ask: Ask, reply: Reply) -> None:
        """Keep a reply; `save` writes it."""
        self._replies[ask.digest] = reply
        self._new.append(json.dumps({"ask": ask.digest, **to_plain(reply)}))

    def save(self) -> None:
        """Append what is new to the file.

        Raises:
            WriteFailedError: The file cannot be written.
        """
        if self._path is None or not self._new:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                # Begun with a newline: it ends a line that a crash may have cut short.
                file.write("\n" + "\n".join(self._new) + "\n")
        except OSError as error:
            raise WriteFailedError(
                f"Cannot write the cache of replies {self._path}: {error}. Choose another folder.",
                path=str(self._path),
            ) from error
        self._new.clear()


def model_fingerprint(model: EditableModel) -> str:
    """Return a digest of all that a reply depends on: weights, applied patches, tokenizer, scoring.

    Weights are read whole, so it costs about what reading them once costs.
    """
    from editkit_core.patch.identity import config_digest, tokenizer_digest

    said = (
        _SCORING,
        model.state_digest(),
        model.ledger.digest() or "",
        tokenizer_digest(model.tokenizer) or "",
        config_digest(model.model.config),
        str(model.dtype),
    )
    return hashlib.sha256("\0".join(said).encode()).hexdigest()


def _has_hooks(model: EditableModel) -> bool:
    return any(
        getattr(module, "_forward_hooks", None) or getattr(module, "_forward_pre_hooks", None)
        for module in model.model.modules()
    )


def _read(path: Path) -> Iterator[tuple[str, Reply]]:
    if not path.exists():
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameterError(
            f"Cannot read the cache of replies {path}: {error}. Remove it.", path=str(path)
        ) from error
    for line in text.splitlines():
        try:
            plain = json.loads(line) if line.strip() else None
        except ValueError:
            continue  # cut short by a crash
        if isinstance(plain, dict) and isinstance(plain.get("ask"), str):
            yield plain.pop("ask"), from_plain(plain)
