"""What differs between two patches: base, edits, parameters, and the changes themselves.

Changes of low rank are compared through their factors: no full matrix is formed unless a patch
holds one. Nothing here imports torch, unless a plugin's entry kind does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import attrs
import numpy as np

from editkit_core.patch.factored import Factored, Float64Array
from editkit_core.patch.format import Patch
from editkit_core.patch.header import BaseFingerprint, JsonValue
from editkit_core.patch.header_codec import to_json
from editkit_core.patch.kinds import ModuleEntry, WeightEntry
from editkit_core.patch.kinds.codebook import CodebookEntry
from editkit_core.patch.kinds.dense import DenseEntry
from editkit_core.patch.kinds.dense_int8 import DenseInt8Entry
from editkit_core.stack.conflicts import Conflict, find_conflicts
from editkit_core.stack.state import entry_of
from editkit_core.types import EditRequest

State = Literal["same", "changed", "added", "removed"]
ROUNDING = 1e-6  # relative; changes as close as this are the same in float32
_COMPARED = (
    "name", "method", "seed", "contexts", "computed_on", "requires", "replaces", "conflicts",
    "licence", "environment", "metrics",
)  # fmt: skip


@attrs.frozen(kw_only=True)
class FieldDiff:
    """A value that differs.

    Attributes:
        name: Its path, for example ``params.v_steps``.
        state: Whether it was ``changed``, ``added`` or ``removed``.
        first: The value in the first patch, None when it has none.
        second: The value in the second patch.
    """

    name: str
    state: State
    first: JsonValue
    second: JsonValue


@attrs.frozen(kw_only=True)
class EditDiff:
    """A fact that one or both patches edit.

    Attributes:
        prompt: The prompt with its subject.
        subject: Whom or what the fact is about.
        state: ``same`` target, ``changed`` target, or ``added`` or ``removed`` by the second.
        first: The first patch's target, or None.
        second: The second patch's target, or None.
    """

    prompt: str
    subject: str
    state: State
    first: str | None
    second: str | None


@attrs.frozen(kw_only=True)
class TensorDiff:
    """The changes that two patches make to one weight.

    Attributes:
        parameter: The weight.
        state: ``same`` to within rounding, ``changed``, or only in one.
        ranks: Number of factors in the first and second patch; None for a full matrix.
        norms: Frobenius norms of the two changes; 0 where a patch leaves the weight alone.
        cosine: ⟨A, B⟩ / (‖A‖ ‖B‖), or None when one is zero.
        difference: ‖A - B‖_F.
        relative: The difference over the larger norm, from 0 to 2.
    """

    parameter: str
    state: State
    ranks: tuple[int | None, int | None]
    norms: tuple[float, float]
    cosine: float | None
    difference: float
    relative: float


@attrs.frozen(kw_only=True)
class ModuleDiff:
    """What two patches do beside the weights at one module.

    Attributes:
        module: The module.
        kind: Entry kind.
        state: ``same``, ``changed``, or only in one.
        first: What the first patch's entry is, as JSON values; None when it has none.
        second: The same of the second patch's.
        rows: Of two codebooks: how many rows are in both, only in the first, and only in the
            second; None for other kinds.
    """

    module: str
    kind: str
    state: State
    first: JsonValue
    second: JsonValue
    rows: tuple[int, int, int] | None


@attrs.frozen(kw_only=True)
class PatchDiff:
    """All that differs between two patches.

    Attributes:
        first: Id of the first patch.
        second: Id of the second patch.
        base: What differs in the models they fit.
        edits: All facts that they edit, those they share too.
        params: The methods' parameters that differ.
        other: What else differs in the headers.
        tensors: All weights that they change.
        modules: All modules that they act on beside the weights.
        conflicts: What would be the matter if both were applied, the second on top.
    """

    first: str
    second: str
    base: tuple[FieldDiff, ...]
    edits: tuple[EditDiff, ...]
    params: tuple[FieldDiff, ...]
    other: tuple[FieldDiff, ...]
    tensors: tuple[TensorDiff, ...]
    modules: tuple[ModuleDiff, ...]
    conflicts: tuple[Conflict, ...]

    @property
    def same_content(self) -> bool:
        """Whether the two are the same patch."""
        return self.first == self.second

    @property
    def same_change(self) -> bool:
        """Whether they change the same weights in the same way, to within rounding.

        What they do beside the weights must be the same bit for bit.
        """
        states = [*(t.state for t in self.tensors), *(m.state for m in self.modules)]
        return all(state == "same" for state in states)


def diff(first: Patch, second: Patch) -> PatchDiff:
    """Compare two patches; neither needs a model.

    Weights are compared by their names, whatever the base.
    """
    one, two = first.header, second.header
    fields = [
        item
        for name in _COMPARED
        for item in _values(name, to_json(getattr(one, name)), to_json(getattr(two, name)))
    ]
    return PatchDiff(
        first=first.id,
        second=second.id,
        base=tuple(_values("base", _base(one.base), _base(two.base))),
        edits=tuple(_edits(one.edits, two.edits)),
        params=tuple(_values("params", to_json(one.params), to_json(two.params))),
        other=tuple(fields),
        tensors=tuple(_tensors(first, second)),
        modules=tuple(_modules(first, second)),
        conflicts=_conflicts(first, second),
    )


# -- header -----------------------------------------------------------------------------------


def _values(name: str, first: JsonValue, second: JsonValue) -> Iterator[FieldDiff]:
    """Yield what differs, going into objects; lists are compared whole."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in sorted(first.keys() | second.keys()):
            where = f"{name}.{key}"
            if key not in first:
                yield FieldDiff(name=where, state="added", first=None, second=second[key])
            elif key not in second:
                yield FieldDiff(name=where, state="removed", first=first[key], second=None)
            else:
                yield from _values(where, first[key], second[key])
    elif first != second:
        yield FieldDiff(name=name, state="changed", first=first, second=second)


def _base(base: BaseFingerprint) -> JsonValue:
    """Return a base as JSON; its tensors by digest alone, which says all that must agree."""
    fields = to_json(base)
    return fields | {"tensors": {name: tensor.sha256 for name, tensor in base.tensors.items()}}


def _edits(first: Sequence[EditRequest], second: Sequence[EditRequest]) -> Iterator[EditDiff]:
    """Pair the edits of one fact, those of the first patch in order, then the second's rest."""
    waiting: dict[tuple[str, str], list[EditRequest]] = defaultdict(list)
    for edit in second:
        for key in _facts(edit):
            waiting[key].append(edit)
    taken: set[int] = set()
    for edit in first:
        candidates = [other for key in _facts(edit) for other in waiting.get(key, [])]
        match = next((other for other in candidates if id(other) not in taken), None)
        if match is None:
            yield _edit(edit, "removed", edit.target_new, None)
            continue
        taken.add(id(match))
        same = edit.target_new == match.target_new
        yield _edit(edit, "same" if same else "changed", edit.target_new, match.target_new)
    for edit in second:
        if id(edit) not in taken:
            yield _edit(edit, "added", None, edit.target_new)


def _facts(edit: EditRequest) -> Iterator[tuple[str, str]]:
    """Yield what a fact is known by: its prompt, and its subject and relation if that is named."""
    yield "", edit.text
    if edit.relation is not None:
        yield edit.subject, edit.relation


def _edit(edit: EditRequest, state: State, first: str | None, second: str | None) -> EditDiff:
    return EditDiff(prompt=edit.text, subject=edit.subject, state=state, first=first, second=second)


# -- changes ----------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Change:
    """What a patch adds to one weight: a product of factors, and a full matrix if there is one."""

    factored: Factored | None
    matrix: Float64Array | None
    rank: int | None

    @classmethod
    def of(cls, entries: Sequence[WeightEntry]) -> _Change:
        factors = [pair for entry in entries if (pair := entry.factors()) is not None]
        full = [_matrix(entry) for entry in entries if entry.factors() is None]
        product = Factored.sum([Factored.of(pair) for pair in factors]) if factors else None
        if not full:
            return cls(product, None, 0 if product is None else product.rank)
        total = np.sum(full, axis=0) if product is None else np.sum(full, axis=0) + product.dense()
        return cls(None, total, None)

    def norm(self) -> float:
        if self.matrix is not None:
            return float(np.linalg.norm(self.matrix))
        return 0.0 if self.factored is None else self.factored.norm()

    def inner(self, other: _Change) -> float:
        """Return ⟨A, B⟩_F."""
        if self.matrix is not None and other.matrix is not None:
            return float((self.matrix * other.matrix).sum())
        if self.matrix is not None:
            return other.inner(self)
        if self.factored is None:
            return 0.0
        if other.matrix is not None:  # ⟨U V, B⟩ = Σ (Uᵀ B) ∘ V
            return float(((self.factored.u.T @ other.matrix) * self.factored.v).sum())  # (r, d_in)
        return 0.0 if other.factored is None else self.factored.inner(other.factored)

    def distance(self, other: _Change) -> float:
        """Return ‖A - B‖_F; no full matrix is formed unless there is one already."""
        if self.matrix is None and other.matrix is None:
            if self.factored is None or other.factored is None:
                return max(self.norm(), other.norm())
            return self.factored.minus(other.factored).norm()
        mine, theirs = self._full(), other._full()
        return float(np.linalg.norm(np.asarray(mine) - np.asarray(theirs)))

    def _full(self) -> Float64Array | float:
        if self.matrix is not None:
            return self.matrix
        return 0.0 if self.factored is None else self.factored.dense()


def _matrix(entry: WeightEntry) -> Float64Array:
    if isinstance(entry, DenseEntry):
        return entry.values.astype(np.float64)
    if isinstance(entry, DenseInt8Entry):
        return entry.matrix()
    return np.asarray(entry.delta().numpy(), dtype=np.float64)  # a plugin's kind


def _tensors(first: Patch, second: Patch) -> Iterator[TensorDiff]:
    mine, theirs = _by_parameter(first), _by_parameter(second)
    for name in dict.fromkeys([*mine, *theirs]):
        yield _tensor(name, mine.get(name, ()), theirs.get(name, ()))


def _by_parameter(patch: Patch) -> dict[str, list[WeightEntry]]:
    grouped: dict[str, list[WeightEntry]] = defaultdict(list)
    for entry in patch.weight_entries:
        grouped[entry.site.parameter].append(entry)
    return grouped


def _tensor(name: str, mine: Sequence[WeightEntry], theirs: Sequence[WeightEntry]) -> TensorDiff:
    if mine and theirs and mine[0].shape != theirs[0].shape:
        return _incomparable(name, mine, theirs)
    a, b = _Change.of(mine), _Change.of(theirs)
    norms = a.norm(), b.norm()
    distance, larger = a.distance(b), max(norms)
    relative = distance / larger if larger else 0.0
    state: State = "same" if relative <= ROUNDING else "changed"
    if not (mine and theirs):
        state = "removed" if mine else "added"
    return TensorDiff(
        parameter=name,
        state=state,
        ranks=(a.rank, b.rank),
        norms=norms,
        cosine=min(1.0, max(-1.0, a.inner(b) / (norms[0] * norms[1]))) if all(norms) else None,
        difference=distance,
        relative=relative,
    )


def _incomparable(
    name: str, mine: Sequence[WeightEntry], theirs: Sequence[WeightEntry]
) -> TensorDiff:
    """Describe changes of two weights of one name and different shapes: nothing is in common."""
    a, b = _Change.of(mine), _Change.of(theirs)
    norms = a.norm(), b.norm()
    return TensorDiff(
        parameter=name, state="changed", ranks=(a.rank, b.rank), norms=norms, cosine=None,
        difference=float(np.hypot(*norms)), relative=float(np.hypot(*norms)) / (max(norms) or 1.0),
    )  # fmt: skip


# -- beside the weights -----------------------------------------------------------------------


def _modules(first: Patch, second: Patch) -> Iterator[ModuleDiff]:
    mine, theirs = _by_module(first), _by_module(second)
    for module, kind in dict.fromkeys([*mine, *theirs]):
        yield _module(module, kind, mine.get((module, kind), []), theirs.get((module, kind), []))


def _by_module(patch: Patch) -> dict[tuple[str, str], list[ModuleEntry]]:
    grouped: dict[tuple[str, str], list[ModuleEntry]] = defaultdict(list)
    for entry in patch.module_entries:
        grouped[entry.site.module, entry.kind].append(entry)
    return grouped


def _module(
    module: str, kind: str, mine: Sequence[ModuleEntry], theirs: Sequence[ModuleEntry]
) -> ModuleDiff:
    state: State = "same" if _bits(mine) == _bits(theirs) else "changed"
    if not (mine and theirs):
        state = "removed" if mine else "added"
    rows = None
    if kind == CodebookEntry.kind:
        ours, others = _rows(mine), _rows(theirs)
        rows = ((ours & others).total(), (ours - others).total(), (others - ours).total())
    return ModuleDiff(
        module=module, kind=kind, state=state, first=_facts_of(mine), second=_facts_of(theirs),
        rows=rows,
    )  # fmt: skip


def _bits(entries: Sequence[ModuleEntry]) -> list[dict[str, tuple[tuple[int, ...], bytes]]]:
    return [
        {name: (array.shape, array.tobytes()) for name, array in entry.tensors().items()}
        for entry in entries
    ]


def _rows(entries: Sequence[ModuleEntry]) -> Counter[bytes]:
    """Count the rows of codebooks by key, value and label, whatever their radii."""
    books = [entry.codebook for entry in entries if isinstance(entry, CodebookEntry)]
    return Counter(
        b"".join(part[i].tobytes() for part in (book.keys, book.values, book.labels))
        for book in books
        for i in range(len(book))
    )


def _facts_of(entries: Sequence[ModuleEntry]) -> JsonValue:
    if not entries:
        return None
    return entries[0].facts() if len(entries) == 1 else [entry.facts() for entry in entries]


def _conflicts(first: Patch, second: Patch) -> tuple[Conflict, ...]:
    if first.id == second.id:
        return ()
    pairs = [(entry_of(patch), patch) for patch in (first, second)]
    both = {first.id, second.id}
    return tuple(c for c in find_conflicts(pairs) if {c.lower, c.upper} == both)
