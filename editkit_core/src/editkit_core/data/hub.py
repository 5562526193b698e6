"""Data sets on the Hugging Face hub: ``hub:OWNER/NAME/FILE`` or ``hub:OWNER/NAME``.

A file is fetched by ``huggingface_hub`` into its cache. Without a file the whole data set is loaded
by ``datasets`` (the extra ``hub``); ``hub:OWNER/NAME#SPLIT`` or ``#CONFIG/SPLIT`` names a part.
``@REVISION`` after the name fixes a revision.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs

from editkit_core.data.place import Place, Rows
from editkit_core.errors import InputNotFoundError, MissingExtraError

PREFIX = "hub:"
_PLACE = re.compile(
    r"hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/#\s]+))?(/(?P<file>[^#\s]+)|#(?P<part>\S+))?"
)


@attrs.frozen(kw_only=True)
class HubName:
    """What a hub place names.

    Attributes:
        repo: ``OWNER/NAME``.
        revision: A branch, tag or commit, or None for the newest.
        file: A file of the repository, or None.
        part: ``SPLIT`` or ``CONFIG/SPLIT``, or None.
    """

    repo: str
    revision: str | None = None
    file: str | None = None
    part: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read a place.

        Raises:
            InputNotFoundError: It does not name a hub data set.
        """
        match = _PLACE.fullmatch(text)
        if match is None:
            raise InputNotFoundError(
                f"{text!r} names no data set on the hub. Write hub:OWNER/NAME/FILE.json, or "
                "hub:OWNER/NAME#SPLIT.",
                place=text,
            )
        return cls(**match.groupdict())


def open_hub(text: str) -> Place:
    """Fetch what a hub place names.

    Raises:
        InputNotFoundError: It is not there, or the hub cannot be reached.
        MissingExtraError: ``datasets`` is needed and not installed.
    """
    name = HubName.parse(text)
    return _file(text, name) if name.file is not None else _rows(text, name)


def _file(text: str, name: HubName) -> Place:
    from huggingface_hub import hf_hub_download

    assert name.file is not None
    try:
        path = Path(
            hf_hub_download(name.repo, name.file, repo_type="dataset", revision=name.revision)
        )
    except Exception as error:  # the hub's HTTP client, and so its errors, differ by version
        raise _unreachable(text, error) from error
    commit = _commit(path) or name.revision
    public = f"{PREFIX}{name.repo}{f'@{commit}' if commit else ''}/{name.file}"
    return Place(text, path, public)


def _rows(text: str, name: HubName) -> Place:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"{text} has no file, so it is loaded by the package datasets, which is not installed. "
            "Name a file (hub:OWNER/NAME/FILE.json), or: pip install 'editkit-core[hub]'",
            extra="hub",
        ) from error
    config, _, split = (name.part or "").rpartition("/")
    try:
        loaded = datasets.load_dataset(
            name.repo, config or None, split=split or None, revision=name.revision
        )
    except Exception as error:  # datasets raises whatever its readers raise
        raise _unreachable(text, error) from error
    public = f"{PREFIX}{name.repo}{f'@{name.revision}' if name.revision else ''}"
    return Rows(text, _one_split(text, loaded), public + (f"#{name.part}" if name.part else ""))


def _one_split(text: str, loaded: Any) -> Any:  # Any: datasets has no types here
    if not hasattr(loaded, "keys"):
        return loaded
    splits = list(loaded.keys())
    if len(splits) != 1:
        raise InputNotFoundError(
            f"{text} has the splits {', '.join(splits)}. Name one: {text}#{(splits or ['…'])[0]}",
            splits=tuple(splits),
        )
    return loaded[splits[0]]


def _commit(path: Path) -> str | None:
    """Return the commit a cached file belongs to: ``…/snapshots/<commit>/file``."""
    parts = path.parts
    if "snapshots" in parts[:-1]:
        return parts[len(parts) - parts[::-1].index("snapshots")]
    return None


def _unreachable(text: str, error: Exception) -> InputNotFoundError:
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    why = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return InputNotFoundError(
        f"Cannot load {text}: {why}. Check the name and the connection, or give a local file.",
        place=text,
    )
