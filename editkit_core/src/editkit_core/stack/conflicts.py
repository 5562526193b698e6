"""What patches do to one another, found before any of them is applied.

==================  =====  =====================================================================
contradiction       fatal  the same fact is given two targets
same_edit           fatal  the same edit occurs twice
declared            fatal  a patch says that it conflicts with the other
replaced            fatal  a patch replaces one that lies above it
requires            fatal  a patch needs another one that is not enabled below it
dense               fatal  two full matrices change the same weight
tied                fatal  two patches change one tensor under two names
replacement         fatal  two codebooks of one module put their values at different positions
overlap             both   codebooks of one module have balls that overlap and answer differently;
                           fatal where they do for one prompt
crosstalk           both   one patch moves the other's key; fatal from ``MOST_CROSSTALK``
==================  =====  =====================================================================

The crosstalk of patch i on edit j is ‖Uᵢ Vᵢ kⱼ‖ / ‖Uⱼ Vⱼ kⱼ‖ with the key kⱼ that patch j keeps as
evidence: how much of a change the other patch makes where this one makes its own. Patches that an
edit was computed on top of are left out, because it was made to fit them.

A patch that another one replaces is shadowed: it does nothing while that one is there, so it is in
nobody's way.

Nothing here imports torch, unless a patch holds a full matrix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import numpy.typing as npt

from editkit_core.errors import EditkitError, StackConflictError
from editkit_core.patch.kinds.codebook import Codebook, CodebookEntry
from editkit_core.patch.kinds.codebook_rules import conflicts as meetings
from editkit_core.patch.kinds.codebook_rules import merge
from editkit_core.patch.replacing import replaced_by
from editkit_core.stack.state import EntryState, StackState

if TYPE_CHECKING:
    from editkit_core.patch.format import Patch
    from editkit_core.patch.kinds import WeightEntry
    from editkit_core.types import EditRequest

Pair = tuple[EntryState, "Patch"]
Matrix = npt.NDArray[np.float64]

# Measured on 306 pairs of ROME edits of the demo model (5.7 M parameters), both on at once: below
# 0.9 every edit kept at least half the probability it has alone, 98 % of it on average; of the 5
# pairs from 0.9 on, 2 lost more than half.
CROSSTALK = 0.3
MOST_CROSSTALK = 0.9


@attrs.frozen(kw_only=True)
class Conflict:
    """Something between two patches of a stack.

    Attributes:
        kind: One of the words in the table at the top of this module.
        fatal: Whether a push is refused for it.
        lower: Id of the lower patch.
        upper: Id of the upper patch.
        value: The crosstalk, or None.
        detail: What is the matter, for people.
    """

    kind: str
    fatal: bool
    lower: str
    upper: str
    value: float | None = None
    detail: str


def find_conflicts(
    pairs: Sequence[Pair],
    *,
    threshold: float = CROSSTALK,
    only: Collection[str] | None = None,
) -> tuple[Conflict, ...]:
    """Return the conflicts between the enabled entries of a stack, bottom first.

    Args:
        pairs: The entries, bottom first, with their patches.
        threshold: Crosstalk below it is not reported.
        only: Ids of the entries asked about; None means all.
    """
    there = [(entry, patch) for entry, patch in pairs if entry.enabled]
    known = {entry.id: entry.replaces for entry, _ in pairs}
    shadowed = replaced_by((entry.id for entry, _ in there), known)
    enabled = [(entry, patch) for entry, patch in there if entry.id not in shadowed]
    asked = {entry.id for entry, _ in there} if only is None else set(only)
    found = [*_same_facts(enabled), *_declared(enabled), *_replaced(there), *_tensors(enabled)]
    found += _crosstalk(enabled, threshold, asked)
    found += _codebooks(enabled, asked)
    place = {entry.id: i for i, (entry, _) in enumerate(there)}
    chosen = (conflict for conflict in found if conflict.lower in asked or conflict.upper in asked)
    return tuple(sorted(chosen, key=lambda c: (place.get(c.upper, -1), place.get(c.lower, -1))))


def check_conflicts(
    pairs: Sequence[Pair],
    new: Collection[str],
    *,
    force: bool = False,
    threshold: float = CROSSTALK,
    known: Iterable[Conflict] = (),
) -> tuple[Conflict, ...]:
    """Return the conflicts of some entries with the others.

    Args:
        pairs: The entries, bottom first, with their patches.
        new: Ids of the entries asked about.
        force: Accept fatal ones.
        threshold: Crosstalk below it is not reported.
        known: Conflicts that were accepted before.

    Raises:
        StackConflictError: One is fatal and not known, and ``force`` is false.
    """
    accepted = {(conflict.kind, conflict.lower, conflict.upper) for conflict in known}
    found = find_conflicts(pairs, threshold=threshold, only=new)
    fatal = [c for c in found if c.fatal and (c.kind, c.lower, c.upper) not in accepted]
    if fatal and not force:
        others = len(fatal) - 1
        more = f" There {'is' if others == 1 else 'are'} {others} more." if others else ""
        raise StackConflictError(
            f"{fatal[0].detail}{more} Nothing was changed. See `editkit stack check`; disable or "
            "remove one of the patches, or pass --force to have both.",
            conflicts=tuple(fatal),
        )
    return found


def check_change(
    before: StackState,
    after: StackState,
    patch_of: Callable[[EntryState], Patch],
    *,
    force: bool = False,
) -> tuple[Conflict, ...]:
    """Return the conflicts of what a change lets count anew, or otherwise, with all that counts.

    What stays is asked only whether another that it requires went away.

    Args:
        before: The stack before the change.
        after: The stack after it.
        patch_of: Gives an entry's patch.
        force: Accept fatal ones.

    Raises:
        StackConflictError: One is fatal and was not there before, and ``force`` is false.
    """
    new = _fresh(before.active, after.active) | _fresh(before.effective, after.effective)
    new |= _bereft(before, after, patch_of)
    if not new:
        return ()
    shadowed = after.shadowed
    asked = [e for e in after.active if e.id in new or e.id not in shadowed]
    pairs = [(entry, patch_of(entry)) for entry in asked]
    former = [(e, p) for e in before.effective if (p := _readable(patch_of, e)) is not None]
    return check_conflicts(pairs, new, force=force, known=find_conflicts(former, only=new))


def _fresh(before: Iterable[EntryState], after: Iterable[EntryState]) -> set[str]:
    """Return the ids of the entries that were not there before, or with another scale."""
    counted = {(entry.id, entry.scale) for entry in before}
    return {entry.id for entry in after if (entry.id, entry.scale) not in counted}


def _bereft(
    before: StackState, after: StackState, patch_of: Callable[[EntryState], Patch]
) -> set[str]:
    """Return the ids of the entries that had below them what they require, and have it no more."""
    were = {name: place for place, name in enumerate(_present(before))}
    are = {name: place for place, name in enumerate(_present(after))}
    stayed = [name for name in were if name in are]
    if len(stayed) == len(were) and stayed == [name for name in are if name in were]:
        return set()  # nothing went and nothing moved, so no patch file need be read
    found = set()
    for entry in after.effective:
        patch = _readable(patch_of, entry) if entry.id in were else None
        for needed in () if patch is None else patch.header.requires:
            had = were.get(needed, len(were)) < were[entry.id]
            if had and are.get(needed, len(are)) > are[entry.id]:
                found.add(entry.id)
    return found


def _present(state: StackState) -> list[str]:
    """Return the ids of the active entries whose change is there, also in one that extends it."""
    others = {entry.id: entry.replaces for entry in state.active if not entry.extends}
    gone = replaced_by(others, others)
    return [entry.id for entry in state.active if entry.id not in gone]


def _readable(patch_of: Callable[[EntryState], Patch], entry: EntryState) -> Patch | None:
    """Return an entry's patch, or None: a damaged file must not keep others from going."""
    try:
        return patch_of(entry)
    except EditkitError:
        return None


# -- the same fact ----------------------------------------------------------------------------


def _same_facts(pairs: Sequence[Pair]) -> Iterator[Conflict]:
    """Compare every edit with those of other patches about the same fact."""
    seen: dict[tuple[str, ...], list[tuple[EntryState, EditRequest]]] = defaultdict(list)
    told: set[tuple[str, str, str, str]] = set()
    for upper, patch in pairs:
        for edit in patch.header.edits:
            for fact in _facts(edit):
                for lower, other in seen[fact]:
                    same = _plain(edit.target_new) == _plain(other.target_new)
                    mark = (lower.id, upper.id, edit.subject, edit.target_new)
                    if lower.id != upper.id and mark not in told:
                        told.add(mark)
                        yield _about_fact(lower, upper, other, edit, same)
        for edit in patch.header.edits:
            for fact in _facts(edit):
                seen[fact].append((upper, edit))


def _about_fact(
    lower: EntryState, upper: EntryState, other: EditRequest, edit: EditRequest, same: bool
) -> Conflict:
    if same:
        detail = (
            f"{upper.label} makes the same edit as {lower.label}: {edit.text!r} -> "
            f"{edit.target_new!r}."
        )
        return Conflict(kind="same_edit", fatal=True, lower=lower.id, upper=upper.id, detail=detail)
    detail = (
        f"{upper.label} says {edit.text!r} -> {edit.target_new!r}, {lower.label} says "
        f"{other.text!r} -> {other.target_new!r}."
    )
    return Conflict(kind="contradiction", fatal=True, lower=lower.id, upper=upper.id, detail=detail)


def _facts(edit: EditRequest) -> Iterator[tuple[str, ...]]:
    """Yield what identifies an edit's fact: subject and relation, and subject and template."""
    subject = _plain(edit.subject)
    if edit.relation is not None:
        yield ("relation", subject, _plain(edit.relation))
    yield ("template", subject, _plain(edit.template))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


# -- what patches declare ---------------------------------------------------------------------


def _declared(pairs: Sequence[Pair]) -> Iterator[Conflict]:
    held = {name for entry, _ in pairs if entry.extends for name in entry.replaces}
    for entry, patch in pairs:
        for needed in patch.header.requires:
            if needed not in held:
                yield Conflict(
                    kind="requires", fatal=True, lower=needed, upper=entry.id,
                    detail=f"{entry.label} requires {needed}, which is not enabled below it.",
                )  # fmt: skip
        held.add(entry.id)
    place = {entry.id: i for i, (entry, _) in enumerate(pairs)}
    told: set[tuple[int, int]] = set()
    for here, (entry, patch) in enumerate(pairs):
        for name in patch.header.conflicts:
            there = place.get(name, here)
            low, high = min(here, there), max(here, there)
            if low == high or (low, high) in told:
                continue
            told.add((low, high))
            yield Conflict(
                kind="declared", fatal=True, lower=pairs[low][0].id, upper=pairs[high][0].id,
                detail=f"{entry.label} says that it does not go together with "
                f"{pairs[there][0].label}.",
            )  # fmt: skip


def _replaced(pairs: Sequence[Pair]) -> Iterator[Conflict]:
    """Report what is put on top of its own replacement, where it would do nothing."""
    for place, (upper, _) in enumerate(pairs):
        for lower, _ in pairs[:place]:
            if upper.id in lower.replaces:
                yield Conflict(
                    kind="replaced", fatal=True, lower=lower.id, upper=upper.id,
                    detail=f"{lower.label} replaces {upper.label} and lies below it, so that one "
                    "does nothing.",
                )  # fmt: skip


# -- the same tensor --------------------------------------------------------------------------


def _tensors(pairs: Sequence[Pair]) -> Iterator[Conflict]:
    full: dict[str, list[EntryState]] = defaultdict(list)
    tied: dict[tuple[str, ...], list[tuple[EntryState, str]]] = defaultdict(list)
    for upper, patch in pairs:
        for name in sorted(_dense(patch)):
            for lower in full[name]:
                if lower.id not in upper.depends_on:
                    yield Conflict(
                        kind="dense", fatal=True, lower=lower.id, upper=upper.id,
                        detail=f"{upper.label} and {lower.label} both change all of {name}.",
                    )  # fmt: skip
            full[name].append(upper)
        for group in patch.header.base.tied:
            for name in sorted(_touched(patch) & {*group}):
                yield from _tied(tied[group], upper, name)
                tied[group].append((upper, name))


def _tied(
    below: Sequence[tuple[EntryState, str]], upper: EntryState, name: str
) -> Iterator[Conflict]:
    for lower, other in below:
        if other != name and lower.id != upper.id and lower.id not in upper.depends_on:
            yield Conflict(
                kind="tied", fatal=True, lower=lower.id, upper=upper.id,
                detail=f"{lower.label} changes {other} and {upper.label} changes {name}, which "
                "are one tensor.",
            )  # fmt: skip


def _dense(patch: Patch) -> set[str]:
    return {e.site.parameter for e in patch.weight_entries if e.factors() is None}


def _touched(patch: Patch) -> set[str]:
    return {entry.site.parameter for entry in patch.weight_entries}


# -- crosstalk --------------------------------------------------------------------------------


def _crosstalk(
    pairs: Sequence[Pair], threshold: float, asked: Collection[str]
) -> Iterator[Conflict]:
    """Report the largest crosstalk between patches one of which is asked about."""
    largest: dict[tuple[int, int], float] = defaultdict(float)
    for module in sorted({block.module for _, patch in pairs for block in patch.evidence}):
        for (i, j), ratio in _module_crosstalk(pairs, module, asked):
            largest[i, j] = max(largest[i, j], ratio)
    for (i, j), ratio in largest.items():
        acting, acted = pairs[i][0], pairs[j][0]
        if ratio < threshold:
            continue
        lower, upper = (acting, acted) if i < j else (acted, acting)
        yield Conflict(
            kind="crosstalk", fatal=ratio >= MOST_CROSSTALK, lower=lower.id, upper=upper.id,
            value=ratio,
            detail=f"{acting.label} changes the output for an edit of {acted.label} by "
            f"{100 * ratio:.0f} % of what that edit does.",
        )  # fmt: skip


def _module_crosstalk(
    pairs: Sequence[Pair], module: str, asked: Collection[str]
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield ((acting, acted on), largest ratio over the keys) for the patches of one module."""
    acting = {i: found for i, (_, patch) in enumerate(pairs) if (found := _entries(patch, module))}
    for j, own_entries in acting.items():
        entry, patch = pairs[j]
        keys = _keys(patch, module)
        if keys is None:
            continue
        own = entry.scale * _moved(own_entries, keys)  # (n,)
        for i, entries in acting.items():
            other = pairs[i][0]
            involved = entry.id in asked or other.id in asked
            if i == j or other.id in entry.depends_on or not involved:
                continue
            moved = other.scale * _moved(entries, keys)  # (n,)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = np.where(own != 0, np.abs(moved / own), 0.0)
            yield (i, j), float(ratios.max())


def _entries(patch: Patch, module: str) -> list[WeightEntry]:
    return [entry for entry in patch.weight_entries if entry.site.module == module]


def _keys(patch: Patch, module: str) -> Matrix | None:
    blocks = [block.keys for block in patch.evidence if block.module == module]
    return np.concatenate(blocks).astype(np.float64) if blocks else None


def _moved(entries: Iterable[WeightEntry], keys: Matrix) -> Matrix:
    """Return ‖ΔW k‖ for each key (n, d_in), as (n,)."""
    total: Any = 0.0  # Any: a number, then a matrix
    for entry in entries:
        factors = entry.factors()
        if factors is None:
            total = total + keys @ entry.delta().numpy().T  # (n, d_in) @ (d_in, d_out)
        else:
            u, v = (part.astype(np.float64) for part in factors)
            total = total + (keys @ v.T) @ u.T  # (n, r) @ (r, d_out)
    return np.asarray(np.linalg.norm(total, axis=1))


# -- codebooks --------------------------------------------------------------------------------


def _codebooks(pairs: Sequence[Pair], asked: Collection[str]) -> Iterator[Conflict]:
    """Compare the codebooks of each module, where one of two patches is asked about."""
    by_module: dict[str, list[tuple[EntryState, Codebook]]] = defaultdict(list)
    for upper, patch in pairs:
        for entry in patch.module_entries:
            if not isinstance(entry, CodebookEntry):
                continue
            module, book = entry.site.module, entry.codebook
            for lower, other in by_module[module]:
                if lower.id != upper.id and (lower.id in asked or upper.id in asked):
                    yield from _meeting(module, lower, other, upper, book)
            by_module[module].append((upper, book))


def _meeting(
    module: str, lower: EntryState, below: Codebook, upper: EntryState, above: Codebook
) -> Iterator[Conflict]:
    if below.replacement != above.replacement:
        yield Conflict(
            kind="replacement", fatal=True, lower=lower.id, upper=upper.id,
            detail=f"{upper.label} is a codebook of {module} with {above.replacement}, "
            f"{lower.label} one with {below.replacement}; one module takes one of the two.",
        )  # fmt: skip
        return
    found = meetings(below, above)
    if not found:
        return
    i, j, distance = min(found, key=lambda meeting: meeting[2])
    before, after = below.radii, merge(below, above).radii[: len(below)]
    silenced = bool(((before > 0) & (after == 0)).any())
    told = "For one prompt both have an answer." if silenced else "Both are made smaller there."
    yield Conflict(
        kind="overlap", fatal=silenced, lower=lower.id, upper=upper.id,
        detail=f"{upper.label} and {lower.label} answer prompts near one another differently at "
        f"{module}: {len(found)} of their balls overlap, the nearest keys are {distance:.3g} apart "
        f"and their radii {above.radii_before[j]:.3g} and {below.radii_before[i]:.3g}. {told}",
    )  # fmt: skip
