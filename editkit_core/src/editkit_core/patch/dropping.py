"""Take single edits out of a codebook patch.

Their rows go, what these took from others is given back, and the rest answers as before.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from editkit_core.errors import ExportError, InvalidParameterError, did_you_mean
from editkit_core.patch.fold_record import FOLD
from editkit_core.patch.format import Patch
from editkit_core.patch.kinds.codebook import Codebook, CodebookEntry, edit_id_of
from editkit_core.patch.kinds.codebook_rules import delete
from editkit_core.patch.split import own_metrics
from editkit_core.types import EditRequest


def without(patch: Patch, edits: Sequence[EditRequest]) -> Patch:
    """Return a codebook patch without some of its edits.

    The new patch replaces the old one, and what that one replaced. Its canary and the scores
    measured for the whole are not kept.

    Args:
        patch: A patch that holds codebooks alone.
        edits: Edits of its header.

    Raises:
        ExportError: It holds something else, or nothing would be left.
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
    kept = [i for i, edit in enumerate(header.edits) if edit not in edits]
    entries = [
        attrs.evolve(entry, codebook=book)
        for entry in patch.entries
        if isinstance(entry, CodebookEntry) and len(book := _rest(entry.codebook, edits))
    ]
    if not entries:
        raise ExportError(
            f"Nothing of the patch {patch.id} would be left. Do not apply it, or take it out of "
            "its stack: editkit stack remove.",
            patch=patch.id,
        )
    count = len(header.edits)
    own = {entry.site.parameter for entry in entries}
    tensors = {name: tensor for name, tensor in header.base.tensors.items() if name in own}
    metrics = own_metrics(header.metrics, kept, count)
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
        metrics={name: value for name, value in metrics.items() if name == "edits"},
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
    others = [entry.kind for entry in patch.entries if not isinstance(entry, CodebookEntry)]
    if others:
        raise ExportError(
            f"The patch {patch.id} holds {others[0]}, of which no single edit can be taken out. "
            "Split it by edit where that can be done (editkit patch split) and leave one out, or "
            "make it again without the edit.",
            patch=patch.id,
            kind=others[0],
        )
    if patch.header.method.name == FOLD:
        raise ExportError(
            f"The patch {patch.id} is a fold. Split it first (editkit patch split), and take the "
            "edit out of its part.",
            patch=patch.id,
        )


def _rest(codebook: Codebook, edits: Sequence[EditRequest]) -> Codebook:
    for edit in edits:
        if codebook.rows_of(edit_id_of(edit)):
            codebook = delete(codebook, edit_id_of(edit))
    return codebook
