"""From a file's records to requests: what is skipped, and which are drawn.

A format gives an :class:`Entry` for a record that can be used and a :class:`Refused` for one that
cannot. A limit draws without replacement by seed; a larger limit begins with the smaller one's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import attrs

from editkit_core.data.dataset import Skipped
from editkit_core.data.format import LoadOptions
from editkit_core.errors import RequestError, RequestFileError
from editkit_core.types import EditRequest


@attrs.frozen
class Entry:
    """A record that can be used.

    Attributes:
        index: Its place in the file, counted from 0.
        id: Its name in the file; empty when records have none.
        make: Makes its requests; called for the records that are drawn.
        left_out: Why probes of it were left out.
    """

    index: int
    id: str
    make: Callable[[], Sequence[EditRequest]]
    left_out: tuple[str, ...] = ()


@attrs.frozen
class Refused:
    """A record that cannot be used.

    Attributes:
        index: Its place in the file, counted from 0.
        error: Why.
    """

    index: int
    error: RequestError


@attrs.frozen(kw_only=True)
class Drawn:
    """What :func:`draw` gives; the fields are those of a ``DataSet``."""

    requests: tuple[EditRequest, ...]
    records: int
    skipped: tuple[Skipped, ...]
    left_out: tuple[Skipped, ...]


def draw(
    records: Iterable[Entry | Refused], options: LoadOptions, *, total: int, name: str
) -> Drawn:
    """Check every record, then draw and make the requests.

    Args:
        records: In file order.
        options: Limit, seed and strictness.
        total: Number of records in the file.
        name: The file, for messages.

    Raises:
        RequestError: A record does not fit and ``strict`` is set, or none can be used.
    """
    entries, refused = _sort_out(records, options.strict, name)
    if not entries:
        raise _none_left(refused, total, name)
    chosen = list(entries)
    if options.limit is not None:
        random.Random(options.seed).shuffle(chosen)
        del chosen[options.limit :]
    return Drawn(
        requests=tuple(request for entry in chosen for request in entry.make()),
        records=total,
        skipped=tuple(
            Skipped(index=r.index, reason=r.error.message, code=r.error.code) for r in refused
        ),
        left_out=tuple(
            Skipped(index=entry.index, reason=why) for entry in chosen for why in entry.left_out
        ),
    )


def _sort_out(
    records: Iterable[Entry | Refused], strict: bool, name: str
) -> tuple[list[Entry], list[Refused]]:
    """Part what can be used from what cannot; a name that came before cannot."""
    entries, refused, seen = [], [], dict[str, int]()
    for record in records:
        if isinstance(record, Entry) and record.id in seen:
            error = RequestFileError(
                f"its id {record.id!r} is also that of record {seen[record.id]}.", id=record.id
            )
            record = Refused(record.index, error)
        if isinstance(record, Entry):
            entries.append(record)
            if record.id:
                seen[record.id] = record.index
            continue
        if strict:
            raise _placed(record, name) from record.error
        refused.append(record)
    return entries, refused


def _placed(refused: Refused, name: str) -> RequestError:
    error = refused.error
    return type(error)(
        f"{name}, record {refused.index} (counted from 0): {error.message}",
        **{**error.facts, "index": refused.index},
    )


def _none_left(refused: Sequence[Refused], total: int, name: str) -> RequestError:
    if not total:
        return RequestFileError(f"{name} holds no records. Check that it is the right file.")
    why = f" The first: record {refused[0].index}: {refused[0].error.message}" if refused else ""
    return RequestFileError(f"None of the {total} records of {name} can be used.{why}", source=name)
