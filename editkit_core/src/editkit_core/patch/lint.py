"""What somebody who passes patches on should know about one before others use it.

A finding is an *error* when the patch contradicts itself or does nothing, and a *warning* when it
lacks something that those who get it will miss. Every rule is a function below; its name is the
rule's name, its docstring says why it matters. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import attrs

from editkit_core.patch.factored import Factored
from editkit_core.patch.fold_record import FOLD
from editkit_core.patch.format import Patch
from editkit_core.patch.header_codec import encode_header, to_json
from editkit_core.patch.kinds import WeightEntry
from editkit_core.patch.kinds.codebook import CodebookEntry, edit_id_of
from editkit_core.patch.kinds.cols import ColumnsEntry
from editkit_core.patch.strict import MAX_METADATA_BYTES
from editkit_core.types import EditRequest

Level = Literal["error", "warning"]
Found = Iterator[tuple[Level, str, str]]  # level, where, message
LARGE_CHANGE = 0.5  # of the weight's norm
HUGE_METADATA_BYTES = MAX_METADATA_BYTES // 4
MOST_ALIKE = 5  # findings of one rule that are told one by one
_RANK_TOLERANCE = 1e-7  # relative to the largest singular value: what float32 resolves
_SPDX_NAME = r"\(?[A-Za-z0-9][A-Za-z0-9.+-]*\)?"
_SPDX = re.compile(rf"{_SPDX_NAME}( (AND|OR|WITH) {_SPDX_NAME})*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PATH = re.compile(
    r"(?:^|[\s\"'=(:])(?:file://|~/|/(?:home|Users|root|mnt|media|data|scratch|tmp|var|work)/|"
    r"[A-Za-z]:[\\/]|\\\\\w)"
)
# Bounded, and begun only where a word begins: a hostile text must not take quadratic time.
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}")


@attrs.frozen(kw_only=True)
class Finding:
    """Something to mend before a patch is passed on.

    Attributes:
        rule: The rule's name.
        level: ``error`` or ``warning``.
        where: The part of the patch that is meant.
        message: What is the matter and what to do.
    """

    rule: str
    level: Level
    where: str
    message: str


def lint(patch: Patch) -> tuple[Finding, ...]:
    """Look a patch over; errors come first.

    Of one rule at most a few findings are told one by one; the last of them says how many more
    there are.
    """
    found: list[Finding] = []
    for rule in RULES:
        mine = list(rule(patch))
        found += [
            Finding(rule=rule.__name__.strip("_"), level=level, where=where, message=message)
            for level, where, message in mine[:MOST_ALIKE]
        ]
        if len(mine) > MOST_ALIKE:
            more = f"{found[-1].message} The same holds for {len(mine) - MOST_ALIKE} more."
            found[-1] = attrs.evolve(found[-1], message=more)
    return tuple(sorted(found, key=lambda finding: finding.level))


# -- what contradicts itself ------------------------------------------------------------------


def _no_change(patch: Patch) -> Found:
    """An entry that adds nothing was computed wrongly, or its file was made up."""
    for i, entry in _weights(patch):
        if entry.norm() == 0:
            yield (
                "error",
                f"entry {i}",
                f"The change of {entry.site.parameter} is zero. Compute the patch again.",
            )


def _contradiction(patch: Patch) -> Found:
    """Two targets for one fact cannot both hold."""
    targets: dict[str, str] = {}
    for i, edit in enumerate(patch.header.edits):
        known = targets.setdefault(edit.text, edit.target_new)
        if known != edit.target_new:
            yield (
                "error",
                f"edit {i}",
                f"{edit.text!r} should say {edit.target_new!r}, and {known!r} according to an "
                "earlier edit. Keep one of the two.",
            )


def _duplicate_edit(patch: Patch) -> Found:
    """The same edit twice makes the change larger than it needs to be."""
    counted = Counter((edit.text, edit.target_new) for edit in patch.header.edits)
    for (text, target), count in counted.items():
        if count > 1:
            yield (
                "warning",
                "edits",
                f"{text!r} → {target!r} is edited {count} times. Make the patch with one of them.",
            )


def _self_reference(patch: Patch) -> Found:
    """A patch that is needed and excluded at once can never be applied."""
    header = patch.header
    needed = set(header.requires)
    for name, others in (("conflicts", header.conflicts), ("replaces", header.replaces)):
        for other in sorted(needed & set(others)):
            yield (
                "error",
                name,
                f"{other} is under requires and under {name}. Take it out of one of them.",
            )


def _evidence(patch: Patch) -> Found:
    """Without the keys, nobody can tell whether two patches disturb one another."""
    sides = {entry.site.module: entry.shape[1] for entry in patch.entries}
    weights = {entry.site.module for entry in patch.weight_entries}
    known = {block.module for block in patch.evidence}
    for module in sorted(weights - known):
        yield (
            "warning",
            module,
            "There is no evidence, so that crosstalk with other patches cannot be computed. Make "
            "the patch with its edit keys (Patch.from_parts(evidence=…)).",
        )
    for i, block in enumerate(patch.evidence):
        if block.module not in sides:
            yield (
                "error",
                f"evidence {i}",
                f"It has keys of {block.module}, which no entry changes. Leave it out.",
            )
        elif block.keys.shape[1] != sides[block.module]:
            yield (
                "error",
                f"evidence {i}",
                f"Its keys have {block.keys.shape[1]} numbers, the inputs of {block.module} have "
                f"{sides[block.module]}. Store keys as (edits, inputs).",
            )


# -- what those who get it will miss ----------------------------------------------------------


def _no_name(patch: Patch) -> Found:
    """People tell patches apart by name."""
    if not patch.header.name:
        yield "warning", "name", "It has no name. Give one (Patch.from_parts(name=…))."


def _licence(patch: Patch) -> Found:
    """Without a licence nobody may pass the patch on."""
    licence = patch.header.licence
    if not licence:
        yield "warning", "licence", "It has no licence. State one by its SPDX name (licence=…)."
    elif not _SPDX.fullmatch(licence):
        yield (
            "warning",
            "licence",
            f"{licence!r:.60} does not look like an SPDX expression, for example MIT.",
        )


def _no_canary(patch: Patch) -> Found:
    """A canary shows whether the patched model says what it said for the author."""
    if patch.canary is None:
        told = "A fold drops the canaries of its parts. " if _is_fold(patch) else ""
        yield (
            "warning",
            "canary",
            f"It has no canary to check it by on another machine. {told}Add one "
            "(editkit_core.patch.canary.with_canary).",
        )


def _no_metrics(patch: Patch) -> Found:
    """Scores say what to expect of a patch, also at its neighbours."""
    if not patch.header.metrics and not _is_fold(patch):
        yield "warning", "metrics", "No scores are recorded. Evaluate it (Patch.with_metrics)."


def _no_edits(patch: Patch) -> Found:
    """Without its requests a patch can be neither explained nor computed again."""
    if not patch.header.edits:
        yield "warning", "edits", "It does not say which edits it makes. Record the requests."


def _no_relation(patch: Patch) -> Found:
    """The relation tells that two prompts ask for one fact."""
    for i, edit in enumerate(patch.header.edits):
        if edit.relation is None:
            yield (
                "warning",
                f"edit {i}",
                f"{edit.text!r:.80} names no relation, so that conflicts with other prompts for "
                "the same fact are not found. Give relation in the request.",
            )


def _same_target(patch: Patch) -> Found:
    """An edit to what was true before changes nothing that was asked for."""
    for i, edit in enumerate(patch.header.edits):
        if edit.target_true is not None and _plain(edit.target_true) == _plain(edit.target_new):
            yield (
                "warning",
                f"edit {i}",
                f"{edit.text!r:.80} should say {edit.target_new!r:.60}, which is also what was "
                "true before. Correct target_new or target_true.",
            )


def _no_probes(patch: Patch) -> Found:
    """Paraphrases and neighbours are needed to judge an edit."""
    without = [edit for edit in patch.header.edits if not _has_probes(edit)]
    if without and len(without) == len(patch.header.edits):
        yield (
            "warning",
            "edits",
            "No edit has paraphrases, locality or portability probes, so that nobody can measure "
            "how well it holds. Give some in the requests.",
        )


def _large_change(patch: Patch) -> Found:
    """A change of the size of the weight disturbs everything."""
    for i, entry in _weights(patch):
        norm = patch.header.base.tensors[entry.site.parameter].norm
        if norm and entry.norm() > LARGE_CHANGE * norm:
            yield (
                "warning",
                f"entry {i}",
                f"The change has {entry.norm() / norm:.2f} times the norm of "
                f"{entry.site.parameter}. Check what else it disturbs, or edit with another layer "
                "or smaller steps.",
            )


def _unused_rank(patch: Patch) -> Found:
    """Factors that depend on one another take room for nothing."""
    for i, entry in _weights(patch):
        factors = None if isinstance(entry, ColumnsEntry) else entry.factors()
        if factors is None or entry.norm() == 0:
            continue
        sigma = Factored.of(factors).singular_values()
        rank, stated = int((sigma > _RANK_TOLERANCE * sigma[0]).sum()), factors[0].shape[1]
        if rank < stated:
            yield (
                "warning",
                f"entry {i}",
                f"It has {stated} factors and rank {rank}. Make it smaller with editkit patch fold "
                "--compress.",
            )


def _tied(patch: Patch) -> Found:
    """A tied weight is changed in all its places."""
    changed = {entry.site.parameter for entry in patch.weight_entries}
    for group in patch.header.base.tied:
        for name in sorted(changed & set(group)):
            others = ", ".join(other for other in group if other != name)
            yield "warning", name, f"It is the same tensor as {others}, which changes with it."


def _silent_rows(patch: Patch) -> Found:
    """A row that a later one of another label has silenced answers nothing."""
    for i, entry in _codebooks(patch):
        silent = int((entry.codebook.radii == 0).sum())
        if silent:
            yield (
                "warning",
                f"entry {i}",
                f"{silent} of its {len(entry.codebook)} rows are silent: a later edit of the same "
                "prompt has another target. Take the earlier edit out (editkit patch drop).",
            )


def _unlisted_rows(patch: Patch) -> Found:
    """A row of an edit that the patch does not list cannot be explained or taken out by name."""
    known = {edit_id_of(edit).tobytes() for edit in patch.header.edits}
    for i, entry in _codebooks(patch):
        unknown = {edit.tobytes() for edit in entry.codebook.edit_ids} - known
        if unknown and known:
            yield (
                "error",
                f"entry {i}",
                f"{len(unknown)} edits of its codebook are not among the patch's edits. Make the "
                "patch with the requests of all its rows.",
            )


def _computed_on(patch: Patch) -> Found:
    """Whoever gets a patch cannot guess which others it was computed on."""
    if patch.header.computed_on is not None and not patch.header.requires:
        yield (
            "warning",
            "computed_on",
            "It was computed on top of other patches and does not name them. List their ids under "
            "requires, or fold it together with them.",
        )


def _no_revision(patch: Patch) -> Found:
    """A hub id without a revision may be another model tomorrow."""
    base = patch.header.base
    if base.revision is None and _HUB_ID.fullmatch(base.model):
        yield (
            "warning",
            "base",
            f"{base.model} is named without a revision. Load it with one, so that others find the "
            "same files.",
        )


# -- what should not be passed on -------------------------------------------------------------


def _machine_path(patch: Patch) -> Found:
    """A path means nothing elsewhere, and may give away a name."""
    for where, text in _texts(patch):
        if _PATH.search(text) or (where == "base.model" and text.startswith(("/", "."))):
            yield (
                "warning",
                where,
                f"{text!r:.80} looks like a path on the author's machine. Take it out, for example "
                "by loading the model by its hub id.",
            )


def _mail(patch: Patch) -> Found:
    """An address is personal data."""
    for where, text in _texts(patch):
        found = _MAIL.search(text)
        if found:
            yield "warning", where, f"{found[0]!r:.60} looks like an e-mail address. Take it out."


def _metadata_size(patch: Patch) -> Found:
    """Readers refuse more than 1 MiB, and a stack lists many patches."""
    size = len(encode_header(patch.header).encode())
    if size > HUGE_METADATA_BYTES:
        yield (
            "warning",
            "metadata",
            f"It takes {size / 1e6:.2f} MB of at most {MAX_METADATA_BYTES / 1e6:.2f}. Leave out "
            "probes, or spread the edits over several patches.",
        )


RULES: tuple[Callable[[Patch], Found], ...] = (
    _no_change, _contradiction, _self_reference, _evidence, _no_name, _licence, _no_edits,
    _same_target, _duplicate_edit, _no_relation, _no_probes, _no_metrics, _no_canary,
    _large_change, _unused_rank, _silent_rows, _unlisted_rows, _tied, _computed_on, _no_revision,
    _machine_path, _mail, _metadata_size,
)  # fmt: skip


def _weights(patch: Patch) -> Iterator[tuple[int, WeightEntry]]:
    for i, entry in enumerate(patch.entries):
        if entry.level == "weight":
            yield i, entry


def _codebooks(patch: Patch) -> Iterator[tuple[int, CodebookEntry]]:
    for i, entry in enumerate(patch.entries):
        if isinstance(entry, CodebookEntry):
            yield i, entry


def _is_fold(patch: Patch) -> bool:
    return patch.header.method.name == FOLD


def _has_probes(edit: EditRequest) -> bool:
    return bool(edit.paraphrases or edit.locality or edit.portability)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _texts(patch: Patch) -> Iterator[tuple[str, str]]:
    """Yield every text of the metadata with its path; each text once."""
    seen: set[str] = set()
    for where, text in _walk("", to_json(patch.header)):
        if text not in seen:
            seen.add(text)
            yield where, text


def _walk(where: str, value: Any) -> Iterator[tuple[str, str]]:  # Any: JSON values
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(f"{where}.{key}" if where else key, item)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _walk(f"{where}[{i}]", item)
