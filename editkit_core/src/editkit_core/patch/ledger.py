"""Which patches are on a model, and the way back.

A merged weight is always ``cast_once(pristine + Σ scale · ΔW)`` over the active patches in the
order of their ids, so neither the order of applying nor that of removing leaves a trace; when the
last one goes, the pristine tensor is back. Overlays never touch a weight, nor does what acts on a
module; there the order of applying counts. A change is prepared completely before the model is
touched, and undone when it fails half way.

A patch that an active one replaces is *shadowed*: it stays, does nothing, and shows again when that
one goes. The others are *effective*.

A weight changes by giving its parameter another tensor: the parameter object stays, and a view
taken before still shows what was there then.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import attrs
import torch
from torch import nn

from editkit_core.errors import ApplyError, PatchShapeError, RevertError
from editkit_core.models.holding import held_otherwise
from editkit_core.models.orientation import sides
from editkit_core.patch import bits
from editkit_core.patch.digests import stack_digest
from editkit_core.patch.fingerprint import layout_of
from editkit_core.patch.merging import merged
from editkit_core.patch.overlay import Overlay
from editkit_core.patch.pristine import Pristine, PristineSource, keep
from editkit_core.patch.replacing import replaced_by

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch
    from editkit_core.patch.kinds import Entry, ModuleEntry, Realised, WeightEntry

_Gated = tuple[str, str]  # a module and an entry kind
Mode = Literal["merge", "overlay"]


@attrs.frozen(kw_only=True, eq=False)
class Wanted:
    """A patch to be put on the model.

    Attributes:
        patch: The patch.
        mode: How it is realised.
        scale: Factor on its change.
    """

    patch: Patch
    mode: Mode = "merge"
    scale: float = 1.0


@attrs.frozen(kw_only=True, eq=False)
class Active(Wanted):
    """A patch that is on the model.

    Attributes:
        token: Names it to :meth:`WeightLedger.remove`.
    """

    token: int


@attrs.frozen(kw_only=True, eq=False)
class _Record:
    """A touched weight: what it was, and the seal of what was last written."""

    pristine: Pristine
    seal: str


class WeightLedger:
    """The patches active on one model.

    Args:
        model: The model. Nothing is read or written before the first :meth:`apply`.
    """

    def __init__(self, model: EditableModel) -> None:
        self._model = model
        self._tokens = itertools.count(1)
        self._active: tuple[Active, ...] = ()
        self._records: dict[str, _Record] = {}
        self._overlays: dict[str, Overlay] = {}
        self._gates: dict[_Gated, Realised] = {}
        self._hidden: frozenset[str] = frozenset()
        self._names: dict[int, str] = {}  # the first name of each parameter object

    @property
    def active(self) -> tuple[Active, ...]:
        """The active patches, in the order they were applied."""
        return self._active

    @property
    def effective(self) -> tuple[Active, ...]:
        """The active patches that no other one replaces, in the order they were applied."""
        return _effective(self._active)

    def digest(self, without: Collection[str] = ()) -> str | None:
        """Return the stack digest of the effective patches; None for the bare base.

        Args:
            without: Ids of patches to leave out, such as those that a new one replaces.
        """
        return stack_digest(
            (active.patch, active.scale)
            for active in self.effective
            if active.patch.header.id not in without
        )

    @contextmanager
    def hidden(self, ids: Collection[str]) -> Iterator[None]:
        """Leave out what patches do to modules within the block; changes of weights stay.

        A method that makes a newer form of a patch works with the model as it is without it.

        Args:
            ids: Ids of active patches; others are ignored.
        """
        before, keys = self._hidden, self._gated_by(a for a in self.effective if a.patch.id in ids)
        try:
            self._hidden = before | frozenset(ids)
            self._swap_gates(self._new_gates(keys, self.effective), keys)
            yield
        finally:
            self._hidden = before
            self._swap_gates(self._new_gates(keys, self.effective), keys)

    def pristine(self, parameter: str) -> torch.Tensor | None:
        """Return the base's tensor of a merged weight, or None when the live one is pristine."""
        record = self._records.get(self._key(parameter)) if self._records else None
        return None if record is None else record.pristine.tensor()

    def apply(self, patch: Patch, mode: Mode = "merge", scale: float = 1.0) -> int:
        """Put a patch on the model and return the token that takes it off; see :meth:`change`."""
        return self.change(add=[Wanted(patch=patch, mode=mode, scale=scale)])[0]

    def remove(self, token: int) -> None:
        """Take a patch off; a token that is not active is ignored.

        Raises:
            RevertError: A weight was changed from outside; nothing is written.
        """
        self.change(remove=[token])

    def change(
        self,
        *,
        add: Sequence[Wanted] = (),
        remove: Collection[int] = (),
        pristine: PristineSource = "snapshot",
    ) -> tuple[int, ...]:
        """Take patches off and put patches on, as one change: all of it or nothing.

        Args:
            add: What to put on.
            remove: Tokens of what to take off; those that are not active are ignored.
            pristine: Where the way back is kept for weights touched for the first time:
                ``snapshot`` keeps the tensor in memory, ``checkpoint`` reads it again from the
                model's files where these hold it bit for bit.

        Returns:
            The tokens of what was put on.

        Raises:
            ApplyError: A patch is on already, or a weight cannot be written in this mode.
            PatchShapeError: An entry does not fit the module it names.
            ModuleNotFoundInModelError: An entry names a module the model does not have.
            RevertError: A weight was changed from outside since the last patch.
        """
        kept = [active for active in self._active if active.token not in remove]
        new: list[Active] = []
        taken = {active.patch.header.id for active in kept}
        for wanted in add:
            self._check(wanted, taken)
            taken.add(wanted.patch.header.id)
            new.append(
                Active(
                    token=next(self._tokens),
                    patch=wanted.patch,
                    mode=wanted.mode,
                    scale=wanted.scale,
                )
            )
        self._realise((*kept, *new), pristine)
        return tuple(active.token for active in new)

    def _realise(self, active: tuple[Active, ...], source: PristineSource) -> None:
        """Make ``active`` the active patches."""
        wanted = _effective(active)
        changed = _difference(self.effective, wanted)
        entries = {mode: _entries(changed, mode) for mode in ("merge", "overlay")}
        names = sorted({self._key(entry.site.parameter) for entry, _ in entries["merge"]})
        tensors, records = self._plan(names, wanted, source)
        modules = {entry.site.module for entry, _ in entries["overlay"]}
        before = {name: self._overlays[name].entries for name in modules & set(self._overlays)}
        keys = self._gated_by(changed)
        gates = self._new_gates(keys, wanted)
        try:
            self._show(modules, wanted)
            _swap_all([(self._model.parameter(name), new) for name, new in tensors.items()])
        except BaseException:
            for name in modules:
                self._set_overlay(name, before.get(name, ()))
            for gate in gates.values():
                gate.remove()
            raise
        self._swap_gates(gates, keys)
        self._active, self._records = active, records

    # -- merge ----------------------------------------------------------------------------------

    def _plan(
        self, names: Sequence[str], wanted: Sequence[Active], source: PristineSource
    ) -> tuple[dict[str, torch.Tensor], dict[str, _Record]]:
        """Return the new tensors of the weights ``names``, and the records that go with them."""
        records, tensors = dict(self._records), {}
        by_name: dict[str, list[tuple[WeightEntry, float]]] = defaultdict(list)
        for entry, scale in _entries(wanted, "merge"):
            by_name[self._key(entry.site.parameter)].append((entry, scale))
        for name in names:
            before, summands = self._untouched(name, source), by_name[name]
            records.pop(name, None)
            tensors[name] = before.tensor()
            if summands:
                layout = layout_of(self._model.module(name.rpartition(".")[0]))
                tensors[name] = merged(tensors[name], summands, layout, name=name)
                records[name] = _Record(pristine=before, seal=bits.seal(tensors[name]))
        return tensors, records

    def _untouched(self, name: str, source: PristineSource) -> Pristine:
        record = self._records.get(name)
        live = self._model.parameter(name).detach()
        if record is None:
            return keep(self._model, name, live, source)
        if bits.seal(live) != record.seal:
            raise RevertError(
                f"{name} was changed from outside while a patch was applied; going on would lose "
                "that change. Load the model again to get back to the base.",
                parameter=name,
            )
        return record.pristine

    # -- overlay --------------------------------------------------------------------------------

    def _show(self, modules: Collection[str], wanted: Sequence[Active]) -> None:
        """Set the side paths of ``modules`` for ``wanted``."""
        overlays = _entries(wanted, "overlay")
        for name in sorted(modules):
            self._set_overlay(name, tuple(item for item in overlays if item[0].site.module == name))

    def _set_overlay(self, name: str, entries: tuple[tuple[WeightEntry, float], ...]) -> None:
        overlay = self._overlays.get(name)
        if overlay is not None and not entries:
            self._overlays.pop(name).remove()
        elif overlay is not None:
            overlay.set(entries)
        elif entries:
            self._overlays[name] = Overlay(self._model.module(name), entries)

    # -- modules --------------------------------------------------------------------------------

    def _gated_by(self, actives: Iterable[Active]) -> set[_Gated]:
        return {(e.site.module, e.kind) for a in actives for e in a.patch.module_entries}

    def _new_gates(
        self, keys: Collection[_Gated], wanted: Sequence[Active]
    ) -> dict[_Gated, Realised]:
        """Put the module entries of ``wanted`` on; the former ones still are there too."""
        entries: dict[_Gated, list[ModuleEntry]] = defaultdict(list)
        for active in wanted:
            if active.patch.id not in self._hidden:
                for entry in active.patch.module_entries:
                    entries[entry.site.module, entry.kind].append(entry)
        gates: dict[_Gated, Realised] = {}
        try:
            for key in sorted(set(keys) & set(entries)):
                kind = type(entries[key][0])
                gates[key] = kind.realise(self._model, key[0], entries[key])
        except BaseException:
            for gate in gates.values():
                gate.remove()
            raise
        return gates

    def _swap_gates(self, gates: dict[_Gated, Realised], keys: Collection[_Gated]) -> None:
        """Take off what was there before ``gates``."""
        for key in keys & self._gates.keys():
            self._gates.pop(key).remove()
        self._gates.update(gates)

    # -- checks ---------------------------------------------------------------------------------

    def _key(self, parameter: str) -> str:
        """Return the one name a parameter goes by, also when it is tied."""
        wanted = self._model.parameter(parameter)
        name = self._names.get(id(wanted))
        if name is None or self._model.parameter(name) is not wanted:
            self._names = {id(p): n for n, p in self._model.model.named_parameters()}
            name = self._names[id(wanted)]
        return name

    def _check(self, wanted: Wanted, taken: Collection[str]) -> None:
        patch, mode = wanted.patch, wanted.mode
        if mode not in ("merge", "overlay"):
            raise ApplyError(f"There is no mode {mode!r}. Use merge or overlay.", mode=mode)
        if patch.header.id in taken:
            raise ApplyError(
                f"The patch {patch.header.id} is applied already. Revert it before applying it "
                "again.",
                patch=patch.header.id,
            )
        if patch.module_entries:
            _check_beside(patch, mode, wanted.scale)
        for entry in patch.entries:
            self._check_entry(entry, mode)

    def _check_entry(self, entry: Entry, mode: Mode) -> None:
        site = entry.site
        expected = sides(self._model.module(site.module))
        if site.parameter != f"{site.module}.weight" or expected != entry.shape:
            raise PatchShapeError(
                f"The change {entry.shape} (out, in) of {site.parameter} does not fit "
                f"{site.module}, whose weight is {expected}. Check that the patch was made for "
                "this model.",
                parameter=site.parameter,
                expected=expected,
                found=entry.shape,
            )
        held = held_otherwise(self._model.parameter(site.parameter))
        if mode == "merge" and held is not None and entry.level == "weight":
            raise ApplyError(
                f"{site.parameter} is {held}, so a patch cannot be merged into it. Use mode "
                "overlay, which leaves the weights alone.",
                parameter=site.parameter,
                mode=mode,
            )


def _check_beside(patch: Patch, mode: Mode, scale: float) -> None:
    """Check how a patch that acts on modules is to be realised.

    Raises:
        ApplyError: Its module entries are to be merged, or scaled.
    """
    kinds = " and ".join(sorted({entry.kind for entry in patch.module_entries}))
    if mode == "merge" and not patch.weight_entries:
        raise ApplyError(
            f"The patch {patch.header.id} holds {kinds} alone, which acts beside the weights and "
            "is never merged into them. Use mode overlay, or auto.",
            patch=patch.header.id,
            mode=mode,
        )
    if scale != 1:
        raise ApplyError(
            f"The patch {patch.header.id} cannot be scaled by {scale}: it holds {kinds}, which "
            "acts or does not. Leave the scale at 1.",
            patch=patch.header.id,
            scale=scale,
        )


def _effective(actives: Sequence[Active]) -> tuple[Active, ...]:
    replaces = {active.patch.header.id: active.patch.header.replaces for active in actives}
    shadowed = replaced_by(replaces, replaces)
    return tuple(active for active in actives if active.patch.header.id not in shadowed)


def _difference(before: Sequence[Active], after: Sequence[Active]) -> list[Active]:
    """Return what is in one of the two only."""
    tokens = {active.token for active in before} & {active.token for active in after}
    return [active for active in (*before, *after) if active.token not in tokens]


def _entries(actives: Sequence[Active], mode: str) -> list[tuple[WeightEntry, float]]:
    """Return the weight entries realised in a mode with their scales, in canonical order."""
    chosen = sorted((a for a in actives if a.mode == mode), key=lambda a: a.patch.header.id)
    return [(entry, active.scale) for active in chosen for entry in active.patch.weight_entries]


def _swap_all(planned: Sequence[tuple[nn.Parameter, torch.Tensor]]) -> None:
    """Give every parameter its new tensor, or none of them."""
    before = [parameter.data for parameter, _ in planned]
    try:
        for parameter, tensor in planned:
            parameter.data = tensor
    except BaseException:
        for (parameter, _), tensor in zip(planned, before, strict=True):
            parameter.data = tensor
        raise
