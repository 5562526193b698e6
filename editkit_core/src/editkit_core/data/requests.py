"""Edit requests from a file: JSON lines, JSON or YAML.

Each record holds the fields of :class:`~editkit_core.types.EditRequest`. A record that does not fit
is named by its place in the file, and nothing is edited.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import cattrs.errors
import yaml

from editkit_core.errors import (
    EditkitError,
    InputNotFoundError,
    RequestError,
    RequestFileError,
    did_you_mean,
)
from editkit_core.params import converter, format_exceptions
from editkit_core.types import EditRequest


def load_requests(path: Path) -> tuple[EditRequest, ...]:
    """Read every request of a file.

    Args:
        path: ``.jsonl`` (a record a line), ``.json`` (a list), ``.yaml`` or ``.yml`` (a list, or
            several documents).

    Raises:
        InputNotFoundError: The file cannot be read.
        RequestFileError: It is not of that format, is empty, or a record has a wrong field.
        RequestError: A record is well formed and cannot be edited; the message names its place.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputNotFoundError(
            f"Cannot read the requests in {path}: {error}.", path=str(path)
        ) from error
    requests = tuple(structure_request(record, where) for where, record in _records(path, text))
    if not requests:
        raise RequestFileError(
            f"{path} holds no requests. Write one record a line.", path=str(path)
        )
    return requests


def dump_request(request: EditRequest) -> dict[str, Any]:  # Any: JSON values
    """Return a request as plain JSON values without empty fields, also inside its probes."""
    plain: dict[str, Any] = _pruned(converter().unstructure(request))
    return plain


def _pruned(value: Any) -> Any:  # Any: JSON values
    if isinstance(value, list | tuple):
        return [_pruned(item) for item in value]
    if not isinstance(value, dict):
        return value
    pruned = {name: _pruned(item) for name, item in value.items()}
    return {name: item for name, item in pruned.items() if item not in (None, "", [], {})}


def _records(path: Path, text: str) -> Iterator[tuple[str, Any]]:  # Any: JSON values
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from _lines(path, text)
    elif suffix in {".json", ".yaml", ".yml"}:
        yield from _list(path, text, suffix)
    else:
        raise RequestFileError(
            f"{path.name!r} ends in {suffix or 'nothing'!r}; requests are read from .jsonl, .json, "
            ".yaml or .yml.",
            path=str(path),
        )


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:  # Any: JSON values
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold U+2028 as it is
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestFileError(
                f"{path}, line {number} is not JSON: {error}.", path=str(path), line=number
            ) from error


def _list(path: Path, text: str, suffix: str) -> Iterator[tuple[str, Any]]:  # Any: JSON values
    try:
        documents = [json.loads(text)] if suffix == ".json" else list(yaml.safe_load_all(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: JSON, or a date
        raise RequestFileError(f"{path} cannot be read: {error}", path=str(path)) from error
    records = [
        record
        for document in documents
        if document is not None
        for record in (document if isinstance(document, list) else [document])
    ]
    for number, record in enumerate(records, 1):
        yield f"{path}, record {number}", record


def structure_request(record: Any, where: str) -> EditRequest:  # Any: JSON values
    """Make a request of plain values.

    Args:
        record: Its fields by name.
        where: Its place, with which messages begin.

    Raises:
        RequestFileError: A field is unknown, missing or of the wrong type.
        RequestError: It is well formed and cannot be edited.
    """
    if not isinstance(record, dict):
        raise RequestFileError(
            f"{where} is {type(record).__name__}, not names and values.", where=where
        )
    known = [field.name for field in attrs.fields(EditRequest)]
    for name in record:
        if name not in known:
            raise RequestFileError(
                f"{where} has an unknown field {name!r}.{did_you_mean(str(name), known)} Known: "
                f"{', '.join(known)}.",
                where=where,
                field=name,
            )
    try:
        return converter().structure(record, EditRequest)
    except RequestError as error:
        raise type(error)(f"{where}: {error.message}", **error.facts) from error
    except cattrs.errors.BaseValidationError as error:
        inner = _request_error(error)
        if inner is not None:
            raise type(inner)(f"{where}: {inner.message}", **inner.facts) from error
        raise RequestFileError(
            f"{where} does not fit: {'; '.join(format_exceptions(error))}.", where=where
        ) from error


def _request_error(error: BaseException) -> EditkitError | None:
    if isinstance(error, EditkitError):
        return error
    for inner in getattr(error, "exceptions", ()):
        found = _request_error(inner)
        if found is not None:
            return found
    return None
