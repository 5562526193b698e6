"""editkit's own records: the fields of an edit request, in JSON lines, JSON or YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from editkit_core.data.drawing import Entry, Refused
from editkit_core.data.file_format import FileFormat, Form, Making, position
from editkit_core.data.place import Raw
from editkit_core.data.requests import structure_request
from editkit_core.errors import RequestError, RequestFileError
from editkit_core.types import EditRequest

_FIELDS = frozenset(field.name for field in attrs.fields(EditRequest))


def plain() -> FileFormat:
    """Return the format; an unknown field is a misfit, as everywhere in request files."""
    return FileFormat(
        name="requests",
        title="Requests: editkit's own records in .jsonl, .json or .yaml",
        source="editkit",
        forms=(
            Form(
                name="requests",
                about="the fields of an edit request",
                policies={"given": "target_new as it stands"},
                fits=_fits,
                read=_read,
            ),
        ),
    )


def _fits(record: Mapping[str, Any], _: str) -> bool:  # Any: JSON values
    return "target_new" in record and set(record) <= _FIELDS


def _read(raws: Sequence[Raw], making: Making) -> Iterator[Entry | Refused]:
    for raw in raws:
        yield _entry(raw)


def _entry(raw: Raw) -> Entry | Refused:
    try:
        if raw.problem:
            raise RequestFileError(raw.problem)
        request = structure_request(raw.value, "the record")
    except RequestError as error:
        return Refused(raw.index, error)
    if not request.id:
        named = attrs.evolve(request, id=position(raw.index))
        return Entry(raw.index, "", lambda: (named,))
    return Entry(raw.index, request.id, lambda: (request,))
