"""What a folded patch remembers of its parts, under ``params``: enough to give them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import cattrs.errors

from editkit_core.errors import EditkitError, ExportError
from editkit_core.params import converter, format_exceptions
from editkit_core.patch.format import Patch
from editkit_core.patch.header import JsonValue
from editkit_core.patch.header_codec import to_json

FOLD = "fold"
_GIVEN_BACK = frozenset(
    {"id", "content_digest", "checksum", "tensors", "entries", "evidence", "edits"}
)


@attrs.frozen(kw_only=True)
class Span:
    """A run of things, counted from 0.

    Attributes:
        start: The first.
        stop: One past the last.
    """

    start: int
    stop: int


@attrs.frozen(kw_only=True)
class PartRecord:
    """One patch inside a fold.

    Attributes:
        id: Its id before it was folded.
        name: Its name for people.
        scale: The factor that is baked into its entries.
        entries: Which of the fold's entries are its own.
        evidence: Which of the fold's evidence blocks.
        edits: Which of the fold's edits.
        canary: Whether it had a canary, which a fold drops.
        header: The rest of its header as JSON, or None where there was no room for it.
    """

    id: str
    name: str
    scale: float
    entries: Span
    evidence: Span
    edits: Span
    canary: bool
    header: JsonValue = None


@attrs.frozen(kw_only=True)
class FoldRecord:
    """All that ``params`` of a fold hold.

    Attributes:
        compressed: Whether low-rank entries were merged; such a fold cannot be split.
        parts: The patches inside, in the order they were given.
    """

    compressed: bool
    parts: tuple[PartRecord, ...]

    def to_params(self) -> dict[str, JsonValue]:
        """Return the record as plain JSON values."""
        return {
            "compressed": self.compressed,
            "parts": [attrs.asdict(part) for part in self.parts],
        }

    def without_headers(self) -> FoldRecord:
        """Return the record without the parts' headers, for folds that have no room for them."""
        parts = tuple(attrs.evolve(part, header=None) for part in self.parts)
        return attrs.evolve(self, parts=parts)


def rest_of_header(patch: Patch) -> dict[str, Any]:  # Any: JSON values
    """Return a header as JSON without what the fold's own entries, evidence and edits say."""
    fields: dict[str, Any] = to_json(patch.header)  # Any: JSON values
    return {name: value for name, value in fields.items() if name not in _GIVEN_BACK}


def read_record(patch: Patch) -> FoldRecord:
    """Return the record of a folded patch.

    Raises:
        ExportError: The patch's parameters are no such record, or it does not fit the patch.
    """
    params: Mapping[str, JsonValue] = patch.header.params
    try:
        record = converter().structure(dict(params), FoldRecord)
    except cattrs.errors.BaseValidationError as error:
        raise _unreadable(patch, "; ".join(format_exceptions(error)[:3])[:300]) from None
    except (EditkitError, TypeError, ValueError) as error:
        raise _unreadable(patch, str(error)[:300]) from None
    for what, total in (
        ("entries", len(patch.entries)),
        ("evidence", len(patch.evidence)),
        ("edits", len(patch.header.edits)),
    ):
        spans: Sequence[Span] = [getattr(part, what) for part in record.parts]
        if not (what == "entries" and record.compressed) and not _cover(spans, total):
            raise _unreadable(patch, f"the parts do not share out its {total} {what}")
    return record


def _cover(spans: Sequence[Span], total: int) -> bool:
    """Say whether spans, in any order, lie side by side from 0 to ``total``."""
    end = 0
    for span in sorted(spans, key=lambda span: (span.start, span.stop)):
        if span.start != end or span.stop < span.start:
            return False
        end = span.stop
    return end == total


def _unreadable(patch: Patch, why: str) -> ExportError:
    return ExportError(
        f"The patch {patch.id} says it is a fold, but its record of parts cannot be used: {why}. "
        "Get the parts from where they came from.",
        patch=patch.id,
    )
