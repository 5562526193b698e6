"""Put a patch on a model in memory and take it off again bit for bit."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, cast

import attrs

from editkit_core.patch import fingerprint
from editkit_core.patch.ledger import Mode, WeightLedger
from editkit_core.patch.modes import Choice, choose_mode, tell

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch


@attrs.define(kw_only=True, eq=False)
class AppliedPatch:
    """A patch that is on a model. As a context manager it is taken off at the end of the block.

    Attributes:
        patch: The patch.
        mode: ``merge`` or ``overlay``, also when ``auto`` was asked for.
        why: The sentence that says why ``auto`` came to an overlay, else empty.
    """

    patch: Patch
    mode: str
    why: str = ""
    _ledger: WeightLedger
    _token: int

    @property
    def active(self) -> bool:
        """Whether it is still on."""
        return any(active.token == self._token for active in self._ledger.active)

    def revert(self) -> None:
        """Take the patch off; the second time does nothing.

        Raises:
            RevertError: A weight was changed from outside meanwhile; nothing is written.
        """
        self._ledger.remove(self._token)

    def __enter__(self) -> AppliedPatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.revert()


def apply_patch(
    model: EditableModel, patch: Patch, *, mode: str = "auto", check_base: bool = True
) -> AppliedPatch:
    """Put a patch on a model.

    Args:
        model: The model; other patches may be on it.
        patch: What to apply.
        mode: ``merge`` writes into the weights (summed in float64 from the pristine base, cast
            once); ``overlay`` adds a side path to the module's output, in float32; ``auto`` merges
            unless a weight is quantised or offloaded, or is in half precision and would lose more
            than 5 % of the change. It then says why, in the handle and to the logger ``editkit``.
            What acts on modules, as a codebook does, is put beside the weights in every mode; a
            patch of that alone cannot be merged.
        check_base: Whether to compare the model's weights with the patch's base first.

    Returns:
        A handle with ``revert()``, usable as a context manager.

    Raises:
        BaseMismatchError: The patch was made for another base, or the base cannot be told.
        PatchShapeError: An entry does not fit the module it names.
        ModuleNotFoundInModelError: An entry names a module the model does not have.
        ApplyError: It is on already, cannot be realised in this mode, or not beside another patch.
        RevertError: A weight was changed from outside since an earlier patch.
    """
    if check_base:
        fingerprint.check_base(model, patch)
    choice = choose_mode(model, patch) if mode == "auto" else Choice(cast(Mode, mode))
    token = model.ledger.apply(patch, choice.mode)
    tell(choice)
    return AppliedPatch(
        patch=patch, mode=choice.mode, why=choice.why, ledger=model.ledger, token=token
    )
