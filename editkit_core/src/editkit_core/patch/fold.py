"""Fold several patches of one base into one file, and split such a file again.

The fold of patches changes the weights as they do together: it holds all their entries, with the
scales baked in, in the order in which a stack adds them up, so that with scales of 1 the bits are
equal too. What acts beside the weights comes in the order of the patches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import reduce

import attrs
import numpy as np

from editkit_core import __version__
from editkit_core.errors import (
    ExportError,
    InvalidParameterError,
    PatchFormatError,
    StackConflictError,
)
from editkit_core.patch.evidence import Evidence
from editkit_core.patch.factored import Factored
from editkit_core.patch.fold_record import FOLD, FoldRecord, PartRecord, Span, rest_of_header
from editkit_core.patch.folded_base import Scaled, common_base, common_ground
from editkit_core.patch.format import MethodRef, Patch
from editkit_core.patch.header_codec import encode_header
from editkit_core.patch.kinds import Entry
from editkit_core.patch.kinds.codebook import Codebook, CodebookEntry
from editkit_core.patch.kinds.codebook_rules import check_mergeable, merge
from editkit_core.patch.kinds.cols import ColumnsEntry
from editkit_core.patch.kinds.dense import DenseEntry
from editkit_core.patch.kinds.dense_int8 import DenseInt8Entry
from editkit_core.patch.kinds.low_rank import LowRankEntry
from editkit_core.patch.split import split
from editkit_core.patch.strict import MAX_METADATA_BYTES, MAX_TENSORS

__all__ = ["fold", "split"]

_MERGED = (LowRankEntry, ColumnsEntry, CodebookEntry)


def fold(
    patches: Sequence[Scaled],
    *,
    name: str = "",
    compress: bool = False,
    below: Sequence[Scaled] = (),
) -> Patch:
    """Make one patch of several for one base.

    Entries, evidence and edits of all parts are kept; the parts are recorded, so that
    :func:`split` gives them back. Canaries and measured scores are not kept: they hold for a part
    alone, not for the sum.

    Args:
        patches: The patches, the lowest first, each with the factor on its change.
        name: A name for people.
        compress: Merge the low-rank entries of each weight into one of the rank that their sum
            has, to within rounding, the column entries of each weight into one, and the codebooks
            of each module into one. Such a patch is smaller and cannot be split.
        below: Patches that stay outside and that a part may have been computed on.

    Returns:
        The fold; it replaces its parts.

    Raises:
        InvalidParameterError: There are no patches, or a scale is zero or no finite number.
        BaseMismatchError: They are for different bases.
        StackConflictError: One is given twice, excludes or replaces another, cannot act on a
            module together with another, or was computed on a stack that neither the other parts
            nor ``below`` explain.
        ExportError: An entry's kind cannot be scaled, or there are too many tensors for a file.
    """
    _check(patches)
    _check_modules([patch for patch, _ in patches])
    order = _order([patch for patch, _ in patches])
    entries: list[Entry] = []
    spans: dict[int, Span] = {}
    for i in order:
        patch, scale = patches[i]
        spans[i] = Span(start=len(entries), stop=len(entries) + len(patch.entries))
        entries += [_scaled(entry, scale) for entry in patch.entries]
    record = _record(patches, spans, compressed=compress)
    if compress:
        entries = _compressed(entries)
    made = _assembled(patches, entries, record, name, below)
    if not _fits(made):
        made = _assembled(patches, entries, record.without_headers(), name, below)
    if len(made.header.tensors) > MAX_TENSORS:
        raise ExportError(
            f"Together the patches hold {len(made.header.tensors)} arrays, a file takes at most "
            f"{MAX_TENSORS}. Fold fewer, or merge their entries with compress."
        )
    return made


def _fits(patch: Patch) -> bool:
    """Say whether a file takes the patch's metadata."""
    try:
        return len(encode_header(patch.header).encode()) <= MAX_METADATA_BYTES
    except PatchFormatError:
        return False


def _check(patches: Sequence[Scaled]) -> None:
    if not patches:
        raise InvalidParameterError("There is nothing to fold. Give at least one patch.")
    for patch, scale in patches:
        if isinstance(scale, bool) or not np.isfinite(scale) or scale == 0:
            raise InvalidParameterError(
                f"The scale of {patch.id} is {scale!r}; it must be a number other than 0. Leave "
                "the patch out instead.",
                scale=scale,
            )
    ids = [patch.id for patch, _ in patches]
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise StackConflictError(
            f"The patch {twice[0]} is given twice. Keep one, with a larger scale if need be.",
            patch=twice[0],
        )
    for patch, _ in patches:
        for other in set(patch.header.conflicts) & set(ids):
            raise StackConflictError(
                f"The patch {patch.id} says that it must not be used with {other}. Leave one out.",
                patch=patch.id,
            )
        for other in set(patch.header.replaces) & set(ids):
            raise StackConflictError(
                f"The patch {patch.id} replaces {other}, which does nothing beside it. Leave "
                f"{other} out.",
                patch=patch.id,
            )


def _check_modules(patches: Sequence[Patch]) -> None:
    """Check that the codebooks of each module can act together."""
    seen: dict[str, tuple[Patch, Codebook]] = {}
    for patch in patches:
        for entry in patch.module_entries:
            if not isinstance(entry, CodebookEntry):
                continue
            first, book = seen.setdefault(entry.site.module, (patch, entry.codebook))
            try:
                check_mergeable(book, entry.codebook)
            except InvalidParameterError as error:
                raise StackConflictError(
                    f"The patches {first.id} and {patch.id} both gate {entry.site.module}. "
                    f"{error.message}",
                    patch=patch.id,
                    module=entry.site.module,
                ) from error


def _order(patches: Sequence[Patch]) -> list[int]:
    """Return the order of the entries: changes of weights by id, then the others as given.

    Raises:
        ExportError: Patches that do both are not given in the order of their ids.
    """
    order = sorted(
        range(len(patches)),
        key=lambda i: (0, patches[i].id, i) if patches[i].weight_entries else (1, "", i),
    )
    beside = [i for i in order if patches[i].module_entries]
    if beside != sorted(beside):
        raise ExportError(
            "Some of these patches change weights and act beside them too, and their order counts. "
            "Give those in the order of their ids, and before patches that change no weight."
        )
    return order


def _record(patches: Sequence[Scaled], entries: dict[int, Span], *, compressed: bool) -> FoldRecord:
    parts = []
    blocks = edits = 0
    for i, (patch, scale) in enumerate(patches):
        evidence = Span(start=blocks, stop=blocks + len(patch.evidence))
        requests = Span(start=edits, stop=edits + len(patch.header.edits))
        blocks, edits = evidence.stop, requests.stop
        parts.append(
            PartRecord(
                id=patch.id, name=patch.header.name, scale=float(scale), entries=entries[i],
                evidence=evidence, edits=requests, canary=patch.canary is not None,
                header=rest_of_header(patch),
            )
        )  # fmt: skip
    return FoldRecord(compressed=compressed, parts=tuple(parts))


def _assembled(
    patches: Sequence[Scaled],
    entries: Sequence[Entry],
    record: FoldRecord,
    name: str,
    below: Sequence[Scaled],
) -> Patch:
    headers = [patch.header for patch, _ in patches]
    inside = {header.id for header in headers}

    def outside(field: str) -> tuple[str, ...]:
        named = (other for header in headers for other in getattr(header, field))
        return tuple(other for other in dict.fromkeys(named) if other not in inside)

    evidence: list[Evidence] = [block for patch, _ in patches for block in patch.evidence]
    return Patch.from_parts(
        entries=entries,
        method=MethodRef(name=FOLD, dist="editkit-core", version=__version__),
        base=common_base([patch for patch, _ in patches]),
        edits=[edit for header in headers for edit in header.edits],
        params=record.to_params(),
        evidence=evidence,
        name=name,
        computed_on=common_ground(patches, below),
        requires=outside("requires"),
        replaces=(*(header.id for header in headers), *outside("replaces")),
        conflicts=outside("conflicts"),
        licence=_licence([header.licence for header in headers]),
    )


def _licence(licences: Sequence[str | None]) -> str | None:
    """Return what holds for all: the licence they share, all of them, or None if one has none."""
    known = sorted({licence for licence in licences if licence})
    if not all(licences):
        return None
    if len(known) == 1:
        return known[0]
    return " AND ".join(f"({one})" if " " in one else one for one in known)


def _scaled(entry: Entry, scale: float) -> Entry:
    """Return ``scale`` times an entry: float64 inside, float32 in the end."""
    if scale == 1:
        return entry
    if isinstance(entry, DenseEntry):
        return attrs.evolve(entry, delta=scale * entry.values.astype(np.float64))
    if isinstance(entry, ColumnsEntry | DenseInt8Entry):
        return entry.scaled(scale)
    factors = entry.factors() if entry.level == "weight" else None
    if factors is None:
        raise ExportError(
            f"An entry of the kind {entry.kind} cannot be scaled by {scale:g}. Fold it with scale "
            "1, or leave it out.",
            kind=entry.kind,
        )
    u, v = factors
    return LowRankEntry(site=entry.site, u=scale * u.astype(np.float64), v=v)


def _compressed(entries: Sequence[Entry]) -> list[Entry]:
    """Merge the low-rank entries and the columns of each weight, and each module's codebooks.

    The others stay, all in order of appearance.
    """
    groups: dict[tuple[str, str, int], list[Entry]] = {}
    for i, entry in enumerate(entries):
        own = 0 if isinstance(entry, _MERGED) else i + 1
        groups.setdefault((entry.kind, entry.site.parameter, own), []).append(entry)
    return [_merged(group) for group in groups.values()]


def _merged(group: Sequence[Entry]) -> Entry:
    books = [entry.codebook for entry in group if isinstance(entry, CodebookEntry)]
    if len(books) > 1:
        return CodebookEntry(site=group[0].site, codebook=reduce(merge, books))
    columns = [entry for entry in group if isinstance(entry, ColumnsEntry)]
    if columns:
        return columns[0] if len(columns) == 1 else ColumnsEntry.sum(columns)
    weights = [entry for entry in group if entry.level == "weight"]
    factors = [pair for entry in weights if (pair := entry.factors()) is not None]
    if not factors:
        return group[0]
    whole = Factored.sum([Factored.of(pair) for pair in factors])
    small = whole.compressed()
    if len(group) == 1 and small.rank == whole.rank:
        return group[0]
    return LowRankEntry(site=group[0].site, u=small.u, v=small.v)
