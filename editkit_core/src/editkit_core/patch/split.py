"""Split a patch into several: a fold into its parts, one method's patch by its edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import attrs

from editkit_core.errors import ExportError, PatchError
from editkit_core.patch import digests
from editkit_core.patch.digests import stack_digest
from editkit_core.patch.evidence import Evidence
from editkit_core.patch.fold_record import FOLD, PartRecord, Span, read_record
from editkit_core.patch.folded_base import Scaled
from editkit_core.patch.format import Patch
from editkit_core.patch.header import BaseFingerprint, JsonValue
from editkit_core.patch.header_codec import decode_header, to_json
from editkit_core.patch.kinds import Entry
from editkit_core.patch.kinds.codebook import CodebookEntry, edit_id_of
from editkit_core.patch.kinds.codebook_rules import only

_FOLDS_DIST = "editkit-core"
_Item = TypeVar("_Item")


def split(patch: Patch, *, below: Sequence[Scaled] = ()) -> list[Patch]:
    """Return the patches that one patch is made of.

    A fold gives its parts back. One that was folded with scale 1 and had no canary is the same
    file as before; another has its scale baked in, or lacks the canary, and so another id.

    A patch of several edits that one method made, one rank-one entry an edit, is split by edit:
    part i was computed on top of the parts before it. A codebook is split by edit too: a part holds
    the rows that its edit relies on, with the radii they have alone. Each part excludes the whole.

    Args:
        patch: The patch.
        below: The patches it was computed on, where a split by edit needs them.

    Raises:
        ExportError: It cannot be split; the message says why.
    """
    if patch.header.method.name == FOLD and patch.header.method.dist == _FOLDS_DIST:
        return _parts_of_fold(patch)
    if patch.module_entries:
        return _rows_by_edit(patch)
    return _by_edit(patch, below)


# -- folds ------------------------------------------------------------------------------------


def _parts_of_fold(patch: Patch) -> list[Patch]:
    record = read_record(patch)
    if record.compressed:
        raise ExportError(
            f"The patch {patch.id} is a compressed fold: its parts were added up. Get them from "
            "where they came from.",
            patch=patch.id,
        )
    return [_part(patch, part) for part in record.parts]


def _part(fold: Patch, part: PartRecord) -> Patch:
    entries = _taken(fold.entries, part.entries)
    evidence = _taken(fold.evidence, part.evidence)
    edits = _taken(fold.header.edits, part.edits)
    if part.header is None:
        return Patch.from_parts(
            entries=entries, method=fold.header.method, base=_base_of(fold, entries), edits=edits,
            params={"part_of": fold.id, "id": part.id, "scale": part.scale}, evidence=evidence,
            name=part.name, licence=fold.header.licence, created=fold.header.created,
            environment=fold.header.environment,
        )  # fmt: skip
    made = _restored(part, entries, evidence, [to_json(edit) for edit in edits])
    if part.scale == 1 and not part.canary and made.id != part.id:
        raise ExportError(
            f"The fold {fold.id} says it holds {part.id[:60]!r}, but what it holds gives "
            f"{made.id}. Get the part from where it came from.",
            patch=fold.id,
            expected=part.id,
            found=made.id,
        )
    return made


def _base_of(fold: Patch, entries: Sequence[Entry]) -> BaseFingerprint:
    base = fold.header.base
    own = {entry.site.parameter for entry in entries}
    return attrs.evolve(base, tensors={k: v for k, v in base.tensors.items() if k in own})


def _restored(
    part: PartRecord,
    entries: Sequence[Entry],
    evidence: Sequence[Evidence],
    edits: Sequence[JsonValue],
) -> Patch:
    """Put a part's header together again and read it as strictly as a file's."""
    where = f"the part {part.id[:60]!r}"
    if not isinstance(part.header, Mapping):
        raise ExportError(f"The header of {where} is no object. Get the part from its source.")
    fields: dict[str, Any] = {  # Any: JSON values
        **part.header,
        "entries": [{"kind": entry.kind, "site": to_json(entry.site)} for entry in entries],
        "tensors": _digests(entries, evidence),
    }
    fields |= {"edits": list(edits)} if edits else {}
    fields |= {"evidence": [block.module for block in evidence]} if evidence else {}
    if part.scale != 1:
        fields.pop("metrics", None)  # measured at scale 1
    try:
        fields["content_digest"] = digests.content_digest(fields)
        fields["id"] = digests.patch_id(fields["content_digest"])
        fields["checksum"] = digests.checksum(fields)
        header = decode_header(digests.canonical(fields, where).decode(), where)
        return Patch(header=header, entries=tuple(entries), evidence=tuple(evidence))
    except PatchError as error:
        raise ExportError(
            f"{where} cannot be put together: {error.message} Get it from where it came from."
        ) from None


def _digests(entries: Sequence[Entry], evidence: Sequence[Evidence]) -> dict[str, str]:
    named = {f"{i}.{k}": array for i, e in enumerate(entries) for k, array in e.tensors().items()}
    for i, block in enumerate(evidence):
        named |= {f"evidence.{i}.{k}": array for k, array in block.tensors().items()}
    return {name: digests.tensor_digest(name, array) for name, array in named.items()}


def _taken(items: Sequence[_Item], span: Span) -> Sequence[_Item]:
    return items[span.start : span.stop]


# -- one method's patch -----------------------------------------------------------------------


def _by_edit(patch: Patch, below: Sequence[Scaled]) -> list[Patch]:
    reason = _not_by_edit(patch)
    if reason:
        raise ExportError(
            f"The patch {patch.id} cannot be split: {reason}. Folds can be split, and patches of "
            "several edits with one rank-one change an edit; make one patch an edit instead.",
            patch=patch.id,
        )
    if stack_digest(below) != patch.header.computed_on:
        raise ExportError(
            f"The patch {patch.id} was computed on other patches, which are not given, so what its "
            "parts stand on cannot be said. Split it where those are: editkit stack split.",
            patch=patch.id,
        )
    parts: list[Patch] = []
    for i in range(len(patch.entries)):
        parts.append(_one_edit(patch, i, stack_digest([*below, *parts])))
    return parts


def _not_by_edit(patch: Patch) -> str | None:
    """Return why entries and edits do not correspond one to one, or None when they do."""
    edits, entries = len(patch.header.edits), patch.weight_entries
    if edits < 2:
        return f"it holds {edits} edit{'' if edits == 1 else 's'}"
    if len(entries) != edits:
        return f"it has {edits} edits and {len(entries)} entries"
    if any(entry.factors() is None or entry.rank != 1 for entry in entries):
        return "an entry is not of rank one, so it may belong to several edits"
    if len({entry.site.parameter for entry in entries}) > 1:
        return "its entries change several weights, so several may belong to one edit"
    if any(len(block.keys) != edits for block in patch.evidence):
        return "its evidence has not one key an edit"
    return None


def _one_edit(patch: Patch, i: int, computed_on: str | None) -> Patch:
    evidence = [_row(block, i) for block in patch.evidence]
    return _part_of(patch, i, [patch.entries[i]], evidence, computed_on)


def _part_of(
    patch: Patch,
    i: int,
    entries: Sequence[Entry],
    evidence: Sequence[Evidence],
    computed_on: str | None,
) -> Patch:
    header = patch.header
    edit, count = header.edits[i], len(header.edits)
    return Patch.from_parts(
        entries=entries,
        method=header.method,
        base=_base_of(patch, entries),
        edits=[edit],
        params=header.params,
        seed=header.seed,
        contexts=header.contexts,
        evidence=evidence,
        name=f"{header.name} ({i + 1} of {count})" if header.name else edit.id,
        metrics=own_metrics(header.metrics, [i], count),
        environment=header.environment,
        computed_on=computed_on,
        requires=header.requires,
        replaces=header.replaces,
        conflicts=(*header.conflicts, header.id),
        licence=header.licence,
        created=header.created,
    )


def _row(block: Evidence, i: int) -> Evidence:
    values = None if block.values is None else block.values[i : i + 1]
    return attrs.evolve(block, keys=block.keys[i : i + 1], values=values)


def own_metrics(
    metrics: Mapping[str, JsonValue], chosen: Sequence[int], count: int
) -> dict[str, JsonValue]:
    """Keep what was measured for some edits; the method's reports are a list of one an edit.

    Args:
        metrics: The patch's metrics.
        chosen: Places of the edits.
        count: How many edits the patch has.
    """
    reports = metrics.get("edits")
    if not isinstance(reports, list) or len(reports) != count:
        return {name: value for name, value in metrics.items() if name != "edits"}
    return {**metrics, "edits": [reports[i] for i in chosen]}


# -- codebooks --------------------------------------------------------------------------------


def _rows_by_edit(patch: Patch) -> list[Patch]:
    edits = patch.header.edits
    reason = _not_by_row(patch)
    if reason:
        raise ExportError(
            f"The patch {patch.id} cannot be split: {reason}. Make one patch an edit instead, or "
            "take single edits out with `editkit patch drop`.",
            patch=patch.id,
        )
    parts = []
    for i, edit in enumerate(edits):
        entries = [
            attrs.evolve(entry, codebook=only(entry.codebook, edit_id_of(edit)))
            for entry in patch.entries
            if isinstance(entry, CodebookEntry) and entry.codebook.rows_of(edit_id_of(edit))
        ]
        evidence = [_row(b, i) for b in patch.evidence if len(b.keys) == len(edits)]
        parts.append(_part_of(patch, i, entries, evidence, patch.header.computed_on))
    return parts


def _not_by_row(patch: Patch) -> str | None:
    """Return why a patch's rows do not belong to its edits, or None when they do."""
    edits = patch.header.edits
    if len(edits) < 2:
        return f"it holds {len(edits)} edit{'' if len(edits) == 1 else 's'}"
    known = {edit_id_of(edit).tobytes() for edit in edits}
    if len(known) < len(edits):
        return "it makes one edit twice"
    found: set[bytes] = set()
    for entry in patch.entries:
        if not isinstance(entry, CodebookEntry):
            return f"it holds {entry.kind} besides a codebook"
        found |= {edit.tobytes() for edit in entry.codebook.edit_ids}
    if found - known:
        return "its codebook has rows of edits that it does not list"
    for edit in edits:
        if edit_id_of(edit).tobytes() not in found:
            return f"{edit.text!r} -> {edit.target_new!r} has no row in its codebook"
    return None
