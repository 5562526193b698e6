"""How a merged weight's way back is kept: the tensor itself, or its place in the model's files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

import attrs
import torch

from editkit_core.errors import EditkitError, RevertError
from editkit_core.patch import bits

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.checkpoint import CheckpointSource

PristineSource = Literal["snapshot", "checkpoint"]


class Pristine(Protocol):
    """A weight as it is in the base."""

    def tensor(self) -> torch.Tensor:
        """Return it, with the dtype and device it had in the model."""


@attrs.frozen(eq=False)
class Snapshot:
    """The tensor, kept in memory."""

    kept: torch.Tensor

    def tensor(self) -> torch.Tensor:
        """Return the very tensor."""
        return self.kept


@attrs.frozen(kw_only=True, eq=False)
class InFiles:
    """The tensor's place in the model's files.

    Attributes:
        source: The files.
        name: The parameter.
        dtype: What it was in the model, which may be wider than the files.
        device: Where it was.
        sha256: Digest of its bytes in the model.
    """

    source: CheckpointSource
    name: str
    dtype: torch.dtype
    device: torch.device
    sha256: str

    def tensor(self) -> torch.Tensor:
        """Read it.

        Raises:
            RevertError: The files are gone or were changed since.
        """
        try:
            found = self.source.tensor(self.name).to(self.dtype)
        except EditkitError as error:
            raise RevertError(
                f"{self.name} of the base cannot be read again: {error.message} Nothing was "
                "changed. Put the files back.",
                parameter=self.name,
            ) from error
        if bits.sha256(found) != self.sha256:
            raise RevertError(
                f"The files in {self.source.folder} were changed while a patch was applied: "
                f"{self.name} is not what the model was loaded with. Nothing was changed. Put the "
                "files back.",
                parameter=self.name,
            )
        return found.to(self.device)


def keep(model: EditableModel, name: str, live: torch.Tensor, source: PristineSource) -> Pristine:
    """Return the way back to a weight that no patch has touched yet.

    Args:
        model: The model.
        name: The parameter.
        live: Its tensor.
        source: ``checkpoint`` uses the files where they hold the tensor bit for bit, and memory
            otherwise.
    """
    if source == "checkpoint" and model.source is not None and model.source.stored_name(name):
        held = InFiles(
            source=model.source,
            name=name,
            dtype=live.dtype,
            device=live.device,
            sha256=bits.sha256(live),
        )
        if _holds(held.tensor):
            return held
    return Snapshot(live)


def _holds(read: Callable[[], torch.Tensor]) -> bool:
    try:
        read()
    except RevertError:
        return False
    return True
