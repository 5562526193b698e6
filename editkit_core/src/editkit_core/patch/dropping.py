"""Take single edits out of a patch: rows of codebooks, or facts of a batch.

Rows of a codebook go, what these took from others is given back, and the rest answers as before.
A fact of a batch goes as if its layers had been solved without it, with the stored residuals of the
others; see :mod:`.dropping_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from editkit_core.errors import ExportError, InvalidParameterError, did_you_mean
from editkit_core.patch.dropping_rows import (
    Rest,
    is_a_solve,
    left_out,
    rounding_of,
    solved_without,
)
from editkit_core.patch.evidence import Evidence
from editkit_core.patch.fold_record import FOLD
from editkit_core.patch.format import LowRankEntry, Patch
from editkit_core.patch.header import JsonValue
from editkit_core.patch.kinds import Entry
from editkit_core.patch.kinds.codebook import Codebook, CodebookEntry, edit_id_of
from editkit_core.patch.kinds.codebook_rules import delete
from editkit_core.patch.split import own_metrics
from editkit_core.types import EditRequest

MOST_ERROR = 1e-3  # a weight in float16 or bfloat16 shows no less
DROPPED = "dropped"  # the metric that says what was done
_STILL_TRUE = ("p_target_before", "p_target_with_value", "updates")  # of each edit
_OF_THE_WHOLE = ("edits", "layers", "missing_left", "p_target_after", DROPPED)


def without(patch: Patch, edits: Sequence[EditRequest], *, approximate: bool = False) -> Patch:
    """Return a codebook patch, or the patch of a batch, without some of its edits.

    The new patch replaces the old one, and what that one replaced. Its canary and the scores
    measured for the whole are not kept. That of a batch says under the metric ``dropped`` what was
    done.

    Args:
        patch: A patch that holds codebooks alone, or one change a layer with a factor an edit.
        edits: Edits of its header.
        approximate: Of a batch, leave the rows of the others as they are.

    Raises:
        ExportError: It holds something else, nothing would be left, or a layer cannot be solved
            again from what is stored.
        InvalidParameterError: It does not make one of the edits.
    """
    header = patch.header
    _check(patch)
    for edit in edits:
        if edit not in header.edits:
            raise InvalidParameterError(
                f"The patch {patch.id} does not make the edit {edit.text!r} -> "
                f"{edit.target_new!r}.",
                patch=patch.id,
            )
    count = len(header.edits)
    kept = [i for i, edit in enumerate(header.edits) if edit not in edits]
    if patch.weight_entries:
        entries, metrics = _solved_again(patch, kept, approximate=approximate)
    else:
        entries = [
            attrs.evolve(entry, codebook=book)
            for entry in patch.entries
            if isinstance(entry, CodebookEntry) and len(book := _rest(entry.codebook, edits))
        ]
        own = own_metrics(header.metrics, kept, count)
        metrics = {name: value for name, value in own.items() if name == "edits"}
    if not entries:
        raise ExportError(
            f"Nothing of the patch {patch.id} would be left. Do not apply it, or take it out of "
            "its stack: editkit stack remove.",
            patch=patch.id,
        )
    changed = {entry.site.parameter for entry in entries}
    tensors = {name: tensor for name, tensor in header.base.tensors.items() if name in changed}
    return Patch.from_parts(
        entries=entries,
        method=header.method,
        base=attrs.evolve(header.base, tensors=tensors),
        edits=[header.edits[i] for i in kept],
        params=header.params,
        seed=header.seed,
        contexts=header.contexts,
        evidence=[
            attrs.evolve(
                block,
                keys=block.keys[kept],
                values=None if block.values is None else block.values[kept],
            )
            for block in patch.evidence
            if len(block.keys) == count and kept
        ],
        name=header.name,
        metrics=metrics,
        environment=header.environment,
        computed_on=header.computed_on,
        requires=header.requires,
        replaces=(header.id, *header.replaces),
        conflicts=header.conflicts,
        licence=header.licence,
    )


def edit_named(patch: Patch, reference: str) -> EditRequest:
    """Return the edit of a patch that a word names.

    Args:
        patch: The patch.
        reference: The request's id, ``#N`` counted from 1, or the subject.

    Raises:
        InvalidParameterError: None or several are meant.
    """
    edits = patch.header.edits
    number = reference.removeprefix("#")
    if reference.startswith("#") and number.isdecimal() and 1 <= int(number) <= len(edits):
        return edits[int(number) - 1]
    named = [edit for edit in edits if reference and reference == edit.id]
    found = named or [edit for edit in edits if reference == edit.subject]
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(f"#{edits.index(edit) + 1}" for edit in found)
        raise InvalidParameterError(
            f"{reference!r} may be any of the edits {places} of {patch.id}. Give #N.",
            reference=reference,
        )
    known = [word for edit in edits for word in (edit.id, edit.subject) if word]
    raise InvalidParameterError(
        f"The patch {patch.id} has no edit {reference!r}.{did_you_mean(reference, known)} Name one "
        f"of its {len(edits)} by id, by subject or as #N; `editkit patch show` lists them.",
        reference=reference,
    )


def _check(patch: Patch) -> None:
    if patch.header.method.name == FOLD:
        raise ExportError(
            f"The patch {patch.id} is a fold. Split it first (editkit patch split), and take the "
            "edit out of its part.",
            patch=patch.id,
        )
    others = [entry.kind for entry in patch.entries if not isinstance(entry, CodebookEntry)]
    reason = _not_a_batch(patch) if others else None
    if reason:
        raise ExportError(
            f"The patch {patch.id} holds {others[0]}, of which no single edit can be taken out: "
            f"{reason}. Split it by edit where that can be done (editkit patch split) and leave "
            "one out, or make it again without the edit.",
            patch=patch.id,
            kind=others[0],
        )


# -- codebooks --------------------------------------------------------------------------------


def _rest(codebook: Codebook, edits: Sequence[EditRequest]) -> Codebook:
    for edit in edits:
        if codebook.rows_of(edit_id_of(edit)):
            codebook = delete(codebook, edit_id_of(edit))
    return codebook


# -- batches ----------------------------------------------------------------------------------


def _not_a_batch(patch: Patch) -> str | None:
    """Return why a patch is not one solve a layer with a factor an edit, or None when it is."""
    count = len(patch.header.edits)
    if count < 2:
        return f"it makes {count} edit{'' if count else 's'}"
    for entry in patch.entries:
        if not isinstance(entry, LowRankEntry):
            return f"{entry.kind} does not keep the edits apart"
        if entry.rank != count:
            return f"it makes {count} edits, and an entry has rank {entry.rank}"
        keys = _keys_of(entry, patch.evidence)
        if keys is None or keys.keys.shape != entry.v.shape:
            return f"it does not hold the keys that {entry.site.module} was solved with"
        rounding = rounding_of(keys.keys, exact=keys.exact)
        if not is_a_solve(entry.v, keys.keys, rounding=rounding):
            return f"the change of {entry.site.parameter} is no solve of the keys that it holds"
    if len({entry.site.parameter for entry in patch.entries}) < len(patch.entries):
        return "it changes a weight twice"
    return None


def _keys_of(entry: Entry, evidence: Sequence[Evidence]) -> Evidence | None:
    found = [block for block in evidence if block.module == entry.site.module]
    return found[0] if len(found) == 1 else None


def _solved_again(
    patch: Patch, kept: Sequence[int], *, approximate: bool
) -> tuple[list[Entry], dict[str, JsonValue]]:
    gone = [i for i in range(len(patch.header.edits)) if i not in kept]
    entries: list[Entry] = []
    rests: list[Rest] = []
    for entry in patch.entries if kept else ():
        keys = _keys_of(entry, patch.evidence)
        assert isinstance(entry, LowRankEntry)  # _check saw to it
        assert keys is not None
        rest = (
            left_out(entry.u, entry.v, keys.keys, gone)
            if approximate
            else solved_without(
                entry.u,
                entry.v,
                keys.keys,
                gone,
                rounding=rounding_of(keys.keys, exact=keys.exact),
            )
        )
        if not rest.error <= MOST_ERROR:
            raise _lost(patch, entry, rest)
        rests.append(rest)
        entries.append(attrs.evolve(entry, u=entry.u[:, kept], v=rest.v))
    way = "rows left out" if approximate else "solved again"
    return entries, _metrics_of(patch, entries, rests, kept, way)


def _lost(patch: Patch, entry: Entry, rest: Rest) -> ExportError:
    known = f"{rest.error:.1e} of the change" if rest.error < 1 else "all of it"
    return ExportError(
        f"The change of {entry.site.parameter} in {patch.id} cannot be solved again from what is "
        f"stored: rounding would be {known}, and {MOST_ERROR:g} is allowed. So it is where the "
        "values are met with no slack or nearly none, and with keys stored as float16. Make the "
        "batch again without the edit (editkit edit), or leave its rows out and the others' as "
        "they are (--approximate).",
        patch=patch.id,
        parameter=entry.site.parameter,
        error=rest.error,
        limit=MOST_ERROR,
    )


def _metrics_of(
    patch: Patch, entries: Sequence[Entry], rests: Sequence[Rest], kept: Sequence[int], way: str
) -> dict[str, JsonValue]:
    """Keep what still holds of a batch's metrics, and say what was done."""
    header, metrics = patch.header, patch.header.metrics
    told = {name: value for name, value in metrics.items() if name not in _OF_THE_WHOLE}
    for name in _STILL_TRUE:
        each = told.get(name)
        if isinstance(each, list):
            told[name] = [each[i] for i in kept]
    layers = metrics.get("layers")
    if isinstance(layers, list) and len(layers) == len(entries):
        told["layers"] = [
            _layer(row, entry, header.base.tensors[entry.site.parameter].norm)
            for row, entry in zip(layers, entries, strict=True)
            if isinstance(row, Mapping)
        ]
    record: dict[str, JsonValue] = {
        "edits": len(header.edits) - len(kept),
        "from": header.id,
        "way": way,
        "effect": [_rounded(rest.effect) for rest in rests],
    }
    if way == "solved again":
        record["error"] = [_rounded(rest.error) for rest in rests]
    before = metrics.get(DROPPED)
    told[DROPPED] = [*(before if isinstance(before, list) else []), record]
    return told


def _layer(row: Mapping[str, Any], entry: Entry, norm: float | None) -> JsonValue:
    """Return what is true of a layer's report without some edits; Any: JSON values."""
    made = {name: row[name] for name in ("layer", "covariance") if name in row}
    if norm and isinstance(entry, LowRankEntry):
        made["delta_norm_relative"] = _rounded(entry.norm() / norm)
    return made


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
