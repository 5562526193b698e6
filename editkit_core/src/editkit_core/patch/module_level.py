"""What cannot be done with entries that act beside the weights, and why.

Such an entry changes what a module gives while the model runs: no weight holds it, so nothing that
only has weights can. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from editkit_core.errors import ApplyError, ExportError

if TYPE_CHECKING:
    from editkit_core.patch.format import Patch
    from editkit_core.patch.kinds import ModuleEntry

_REASONS = {
    "gate.codebook/1": "a codebook replaces the module's output for the prompts it knows and "
    "leaves all others alone, which no weight can do",
}
_OTHERWISE = "it acts while the model runs, and changes no weight"


def why_no_weight(entry: ModuleEntry) -> str:
    """Return why an entry cannot become a weight."""
    return _REASONS.get(entry.kind, _OTHERWISE)


def refuse_module_entries(patches: Iterable[Patch], wanted: str) -> None:
    """Refuse patches that act beside the weights where only weights are written.

    Args:
        patches: The patches.
        wanted: What cannot hold them, for example ``a checkpoint``.

    Raises:
        ExportError: One does; the message says why, and how to use it.
    """
    for patch in patches:
        for entry in patch.module_entries:
            raise ExportError(
                f"The patch {patch.header.id} holds an entry of the kind {entry.kind} for "
                f"{entry.site.module}: {why_no_weight(entry)}, so {wanted} cannot hold it. Leave "
                "it out here. It lives beside the model: load that with editkit and apply the "
                "patch there (Editor.apply, or editkit generate --patch).",
                patch=patch.header.id,
                kind=entry.kind,
                module=entry.site.module,
            )


def check_realisable(patch: Patch, mode: str, scale: float) -> None:
    """Refuse a mode or a factor that an entry beside the weights cannot have.

    Raises:
        ApplyError: ``merge`` for a patch that changes no weight, or a factor other than 1.
    """
    for entry in patch.module_entries:
        if scale != 1:
            raise ApplyError(
                f"The patch {patch.header.id} holds {entry.kind}, which is there or not, so it "
                f"cannot be scaled by {scale:g}. Use scale 1, or disable the patch.",
                patch=patch.header.id,
                scale=scale,
            )
        if mode == "merge" and not patch.weight_entries:
            raise ApplyError(
                f"The patch {patch.header.id} holds {entry.kind} and changes no weight, so it "
                "cannot be merged. Use mode overlay.",
                patch=patch.header.id,
                mode=mode,
            )
