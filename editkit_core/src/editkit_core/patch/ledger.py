"""Which patches are on a model, and the way back.

A merged weight is always ``cast_once(pristine + Σ deltas)`` over the active patches in the order of
their ids, so neither the order of applying nor that of removing leaves a trace; when the last one
goes, the snapshot's bytes are written back. Overlays never touch a weight. A change is prepared
completely before the model is touched, and undone when it fails half way.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import torch

from editkit_core.errors import ApplyError, PatchShapeError, RevertError
from editkit_core.models.orientation import sides
from editkit_core.patch import bits
from editkit_core.patch.digests import stack_digest
from editkit_core.patch.fingerprint import layout_of
from editkit_core.patch.overlay import Overlay

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch
    from editkit_core.patch.kinds import WeightEntry

Mode = Literal["merge", "overlay"]


@attrs.frozen(kw_only=True, eq=False)
class Active:
    """A patch that is on the model.

    Attributes:
        token: Names it to :meth:`WeightLedger.remove`.
        patch: The patch.
        mode: How it is realised.
    """

    token: int
    patch: Patch
    mode: Mode


@attrs.frozen(kw_only=True, eq=False)
class _Record:
    """A touched weight: what it was, and the digest of what was last written."""

    pristine: torch.Tensor
    written: str


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

    @property
    def active(self) -> tuple[Active, ...]:
        """The active patches, in the order they were applied."""
        return self._active

    def digest(self) -> str | None:
        """Return the stack digest of the active patches; None for the bare base."""
        return stack_digest(active.patch for active in self._active)

    def pristine(self, parameter: str) -> torch.Tensor | None:
        """Return the base's tensor of a merged weight, or None when the live one is pristine."""
        record = self._records.get(self._key(parameter)) if self._records else None
        return None if record is None else record.pristine

    def apply(self, patch: Patch, mode: Mode = "merge") -> int:
        """Put a patch on the model and return the token that takes it off.

        Raises:
            ApplyError: It is on already, or a weight cannot be written in this mode.
            PatchShapeError: An entry does not fit the module it names.
            ModuleNotFoundInModelError: An entry names a module the model does not have.
            RevertError: A weight was changed from outside since the last patch.
        """
        if mode not in ("merge", "overlay"):
            raise ApplyError(f"There is no mode {mode!r}. Use merge or overlay.", mode=mode)
        if any(active.patch.header.id == patch.header.id for active in self._active):
            raise ApplyError(
                f"The patch {patch.header.id} is applied already. Revert it before applying it "
                "again.",
                patch=patch.header.id,
            )
        for entry in patch.entries:
            self._check(entry, mode)
        new = Active(token=next(self._tokens), patch=patch, mode=mode)
        self._change((*self._active, new), new)
        return new.token

    def remove(self, token: int) -> None:
        """Take a patch off; a token that is not active is ignored.

        Raises:
            RevertError: A weight was changed from outside; nothing is written.
        """
        gone = next((active for active in self._active if active.token == token), None)
        if gone is not None:
            self._change(tuple(a for a in self._active if a is not gone), gone)

    def _change(self, wanted: tuple[Active, ...], changed: Active) -> None:
        """Make ``wanted`` the active patches; they differ from the present ones by ``changed``."""
        if changed.mode == "merge":
            names = {self._key(entry.site.parameter) for entry in changed.patch.entries}
            records = self._merged(sorted(names), wanted)
        else:
            modules = {entry.site.module for entry in changed.patch.entries}
            self._show(modules, wanted)
            records = self._records
        self._active, self._records = wanted, records

    # -- merge ----------------------------------------------------------------------------------

    def _merged(self, names: Sequence[str], wanted: Sequence[Active]) -> dict[str, _Record]:
        """Write the weights called ``names`` for ``wanted`` and return the new records."""
        records, planned = dict(self._records), []
        for name in names:
            live = self._model.parameter(name).detach()
            pristine = self._untouched(name, live)
            entries = list(self._entries(wanted, name))
            new = self._sum(name, pristine, entries) if entries else pristine
            planned.append((live, new))
            records.pop(name, None)
            if entries:
                records[name] = _Record(pristine=pristine, written=bits.sha256(new))
        _write_all(planned)
        return records

    def _untouched(self, name: str, live: torch.Tensor) -> torch.Tensor:
        record = self._records.get(name)
        if record is None:
            return live.clone()
        if bits.sha256(live) != record.written:
            raise RevertError(
                f"{name} was changed from outside while a patch was applied; going on would lose "
                "that change. Load the model again to get back to the base.",
                parameter=name,
            )
        return record.pristine

    def _sum(
        self, name: str, pristine: torch.Tensor, entries: Sequence[WeightEntry]
    ) -> torch.Tensor:
        layout = layout_of(self._model.module(name.rpartition(".")[0]))
        new = bits.cast_once(pristine, (entry.delta(layout) for entry in entries))
        if not bits.all_finite(new) and bits.all_finite(pristine):
            raise ApplyError(
                f"With the patch {name} would overflow {new.dtype}. Nothing was changed. Use mode "
                "overlay, or load the model in float32.",
                parameter=name,
            )
        return new

    def _entries(self, actives: Sequence[Active], name: str) -> Iterator[WeightEntry]:
        for active in _canonical(actives, "merge"):
            for entry in active.patch.entries:
                if self._key(entry.site.parameter) == name:
                    yield entry

    # -- overlay --------------------------------------------------------------------------------

    def _show(self, modules: set[str], wanted: Sequence[Active]) -> None:
        """Set the side paths of ``modules`` for ``wanted``."""
        overlays = [e for a in _canonical(wanted, "overlay") for e in a.patch.entries]
        planned = {
            name: tuple(entry for entry in overlays if entry.site.module == name)
            for name in sorted(modules)
        }
        before = {name: self._overlays[name].entries for name in planned if name in self._overlays}
        try:
            for name, entries in planned.items():
                self._set_overlay(name, entries)
        except BaseException:
            for name in planned:
                self._set_overlay(name, before.get(name, ()))
            raise

    def _set_overlay(self, name: str, entries: tuple[WeightEntry, ...]) -> None:
        overlay = self._overlays.get(name)
        if overlay is not None and not entries:
            self._overlays.pop(name).remove()
        elif overlay is not None:
            overlay.set(entries)
        elif entries:
            self._overlays[name] = Overlay(self._model.module(name), entries)

    # -- checks ---------------------------------------------------------------------------------

    def _key(self, parameter: str) -> str:
        """Return the one name a parameter goes by, also when it is tied."""
        wanted = self._model.parameter(parameter)
        return next(str(n) for n, p in self._model.model.named_parameters() if p is wanted)

    def _check(self, entry: WeightEntry, mode: Mode) -> None:
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
        if mode == "merge" and not bits.is_plain(self._model.parameter(site.parameter)):
            weight = self._model.parameter(site.parameter)
            why = "offloaded" if weight.is_meta else f"quantised ({weight.dtype})"
            raise ApplyError(
                f"{site.parameter} is {why}, so a patch cannot be merged into it. Use mode "
                "overlay, which leaves the weights alone.",
                parameter=site.parameter,
                mode=mode,
            )


def _canonical(actives: Sequence[Active], mode: Mode) -> list[Active]:
    return sorted((a for a in actives if a.mode == mode), key=lambda a: a.patch.header.id)


def _write_all(planned: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy every new tensor into its place, or none of them."""
    before = [live.clone() for live, _ in planned]
    try:
        for live, new in planned:
            live.copy_(new)
    except BaseException:
        for (live, _), old in zip(planned, before, strict=True):
            live.copy_(old)
        raise
