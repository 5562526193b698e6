"""Where a data set lies, and its raw records: a file or folder, or rows from the hub.

Nothing is opened before it is asked for. A file is read once: its digest and its records come from
the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import yaml

from editkit_core.errors import InputNotFoundError, RequestFileError

_LINES = frozenset({".jsonl", ".ndjson"})
_JSON = frozenset({".json"})
_YAML = frozenset({".yaml", ".yml"})
_BOMS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@attrs.frozen
class Raw:
    """A record as the file has it.

    Attributes:
        index: Its place in the file, counted from 0.
        value: What JSON or YAML gave; None when it could not be read.
        part: The list it stands in, for a file that holds several by name.
        problem: Why it could not be read; empty when it was.
    """

    index: int
    value: Any  # Any: JSON values
    part: str = ""
    problem: str = ""


class Place:
    """A file or folder.

    Args:
        text: What stands after the format's name.
        path: The file or folder, or None when the text is no path.
        name: A public name of it, without this machine's folders; the file's name by default.
    """

    def __init__(self, text: str, path: Path | None, name: str = "") -> None:
        self.text = text
        self.path = path
        self.name = name or (path.name if path is not None else text)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.path is not None and os.path.isdir(self.path)

    def beside(self, name: str) -> Place | None:
        """Return a file of this name in the same folder, or None when there is none."""
        path = None if self.path is None else self.path.with_name(name)
        return Place(name, path) if path is not None and os.path.isfile(path) else None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self._data).hexdigest()

    @cached_property
    def raws(self) -> tuple[Raw, ...]:
        """Every record of the file.

        Raises:
            InputNotFoundError: The file cannot be read.
            RequestFileError: It is not JSON, JSON lines or YAML, or has no records.
        """
        text = self._text
        assert self.path is not None
        raws = tuple(_records(text, self.path.suffix.lower(), self.name))
        if not raws:
            raise RequestFileError(
                f"{self.name} holds no records. Check that it is the right file.", source=self.name
            )
        return raws

    @cached_property
    def _data(self) -> bytes:
        if not self.text or self.path is None:
            raise InputNotFoundError("No file is named. Write FORMAT:FILE.")
        if self.is_folder:
            raise InputNotFoundError(
                f"{self.path} is a folder. Name a file in it.", path=str(self.path)
            )
        try:
            return self.path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise InputNotFoundError(
                f"Cannot read the data set {self.path}: "
                f"{getattr(error, 'strerror', None) or error}. Check the path; "
                "a relative one is looked up here and then in the folder EDITKIT_DATA names.",
                path=str(self.path),
            ) from error

    @property
    def _text(self) -> str:
        try:
            return self._data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            other = _BOMS.get(self._data[:2])
            why = f"it is {other}" if other else str(error)
            raise InputNotFoundError(
                f"{self.name} is not UTF-8: {why}. Save it as UTF-8.", path=str(self.path)
            ) from error


class Rows(Place):
    """Rows that another library has read.

    Args:
        text: What stands after the format's name.
        rows: Plain JSON values, one a record.
        name: A public name of them.
    """

    def __init__(self, text: str, rows: Iterable[Any], name: str) -> None:  # Any: JSON values
        super().__init__(text, None, name)
        self._rows = tuple(rows)

    @cached_property
    def raws(self) -> tuple[Raw, ...]:
        """Every row."""
        return tuple(Raw(i, row) for i, row in enumerate(self._rows))

    @cached_property
    def _data(self) -> bytes:
        """The rows as JSON lines with sorted names, so that they have a digest."""
        try:
            lines = [json.dumps(row, sort_keys=True, ensure_ascii=True) for row in self._rows]
        except (TypeError, ValueError) as error:
            raise RequestFileError(
                f"{self.name} holds more than texts, numbers and lists: {error}. Only text data "
                "sets can be loaded.",
                source=self.name,
            ) from error
        return "".join(f"{line}\n" for line in lines).encode()


def joint_digest(places: Iterable[Place]) -> str:
    """Return one digest of several files: SHA-256 of their digests and names, one a line."""
    lines = [f"{place.digest}  {place.name}\n" for place in places]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def json_lines(text: str) -> Iterator[Raw]:
    """Read JSON lines; a line that is not JSON is a record with a problem."""
    index = 0
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold U+2028 as it is
        if not line.strip():
            continue
        try:
            yield Raw(index, json.loads(line))
        except (ValueError, RecursionError) as error:
            yield Raw(index, None, problem=f"line {number} is not JSON: {error}.")
        index += 1


def _records(text: str, suffix: str, name: str) -> Iterator[Raw]:
    if suffix in _LINES:
        yield from json_lines(text)
    elif suffix in _JSON:
        yield from _json(text, name)
    elif suffix in _YAML:
        yield from _listed(_yaml(text, name))
    else:
        raise RequestFileError(
            f"{name!r} ends in {suffix or 'nothing'!r}; data sets are read from .json, .jsonl, "
            ".yaml or .yml.",
            source=name,
        )


def _json(text: str, name: str) -> Iterator[Raw]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":  # that is how JSON lines look to a reader of JSON
            raise RequestFileError(
                f"{name} is not JSON: {error}. If it was cut off, get it again.", source=name
            ) from error
        yield from json_lines(text)
    except (ValueError, RecursionError) as error:
        raise RequestFileError(f"{name} cannot be read as JSON: {error}.", source=name) from error
    else:
        yield from _listed([value])


def _yaml(text: str, name: str) -> list[Any]:  # Any: YAML values
    try:
        return list(yaml.safe_load_all(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date
        raise RequestFileError(f"{name} is not YAML: {error}", source=name) from error


def _listed(documents: Iterable[Any]) -> Iterator[Raw]:  # Any: JSON values
    """Give the records of lists, of lists by name, and of single objects."""
    index = 0
    for document in documents:
        for part, value in _parts(document):
            yield Raw(index, value, part)
            index += 1


def _parts(document: Any) -> Iterator[tuple[str, Any]]:  # Any: JSON values
    if document is None:
        return
    if isinstance(document, list):
        for value in document:
            yield "", value
    elif isinstance(document, dict) and document and all(map(_is_records, document.values())):
        for part, values in document.items():
            for value in values:
                yield str(part), value
    else:
        yield "", document


def _is_records(value: object) -> bool:
    """Whether a value is a list of objects, as in ``{"train": [{...}], "test": [{...}]}``."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)
