"""Merge or overlay: what ``auto`` comes to for a patch on a model, and why."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs
import torch

from editkit_core.models.holding import held_otherwise
from editkit_core.models.orientation import sides
from editkit_core.patch.fidelity import merge_cosine
from editkit_core.patch.fingerprint import layout_of

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch
    from editkit_core.patch.kinds import WeightEntry
    from editkit_core.patch.ledger import Mode

LEAST_COSINE = 0.95
_HALVES = (torch.float16, torch.bfloat16)


@attrs.frozen
class Choice:
    """How a patch is realised.

    Attributes:
        mode: ``merge`` or ``overlay``.
        why: The sentence that says why it is an overlay, with the figure; empty for a
            merge, and for a patch that changes no weight.
        measured: Whether the reason is a figure, and not that the weights cannot be written.
    """

    mode: Mode
    why: str = ""
    measured: bool = False


def choose_mode(model: EditableModel, patch: Patch, *, scale: float = 1.0) -> Choice:
    """Return ``merge``, unless a weight cannot be written or would lose too much of the change.

    It is an overlay where it changes no weight, where a touched weight is quantised or offloaded,
    and where one in half precision would realise its change with a cosine below ``LEAST_COSINE``,
    measured from the pristine weight. Other patches on the model make no difference.
    Full-precision weights are not measured.

    Args:
        model: The model; it is read only.
        patch: The patch.
        scale: Factor on its change.

    Raises:
        ModuleNotFoundInModelError: An entry names a module the model does not have.
    """
    if not patch.weight_entries:
        return Choice("overlay")  # there is nothing to merge, so nothing to explain
    for entry in patch.weight_entries:
        held = held_otherwise(model.parameter(entry.site.parameter))
        if held is not None:
            return Choice(
                "overlay",
                f"{entry.site.parameter} is {held} and cannot be written, so the patch is applied "
                "beside the weights (overlay).",
            )
    worst, name = min(_cosines(model, patch, scale), default=(1.0, ""))
    if worst >= LEAST_COSINE:
        return Choice("merge")
    dtype = str(model.parameter(name).dtype).removeprefix("torch.")
    return Choice(
        "overlay",
        f"Merged into the {dtype} weight {name}, the change would be realised with cosine "
        f"{worst:.3f} (at least {LEAST_COSINE} is wanted), so the patch is applied beside the "
        "weights (overlay).",
        measured=True,
    )


def tell(choice: Choice) -> None:
    """Say to the logger ``editkit`` why a patch is an overlay; of a merge nothing is said."""
    if choice.why:
        level = logging.WARNING if choice.measured else logging.INFO
        logging.getLogger("editkit").log(level, choice.why)


def _cosines(model: EditableModel, patch: Patch, scale: float) -> list[tuple[float, str]]:
    """Return the cosine of every touched weight in half precision, with its name."""
    tensors: dict[int, tuple[str, list[tuple[WeightEntry, float]]]] = {}
    for entry in patch.weight_entries:  # tied weights are one weight, so they are told by identity
        name = entry.site.parameter
        parameter = model.parameter(name)
        fits = sides(model.module(entry.site.module)) == entry.shape  # else it is refused anyway
        if parameter.dtype in _HALVES and fits:
            tensors.setdefault(id(parameter), (name, []))[1].append((entry, scale))
    found = []
    for name, summands in tensors.values():
        pristine = model.ledger.pristine(name)
        weight = model.parameter(name).detach() if pristine is None else pristine
        layout = layout_of(model.module(name.rpartition(".")[0]))
        found.append((merge_cosine(weight, summands, layout), name))
    return found
