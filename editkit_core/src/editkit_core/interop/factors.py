"""Patches as one product U V for each module: what every LoRA format holds.

Several patches are folded by putting their factors side by side, with the scales baked in, so the
product is their sum to within one rounding to float32.

Legend: d_out, d_in: sides of a weight; r: sum of the ranks of its changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from editkit_core.errors import ExportError, InvalidParameterError, StackConflictError
from editkit_core.interop.lossy import Loss, truncate
from editkit_core.patch.factored import Factored, Float64Array
from editkit_core.patch.folded_base import common_base
from editkit_core.patch.format import Patch
from editkit_core.patch.header import BaseFingerprint
from editkit_core.patch.kinds import WeightEntry
from editkit_core.patch.kinds.arrays import Float32Array, float_matrix
from editkit_core.patch.module_level import refuse_module_entries
from editkit_core.types import Progress, SilentProgress, Site

Scaled = tuple[Patch, float]


@attrs.frozen(kw_only=True, eq=False)
class ModuleFactors:
    """The change of one module.

    Attributes:
        site: Where it acts.
        layout: ``out_in`` for a Linear, ``in_out`` for a Conv1D. The factors do not depend on it.
        u: Left factors (d_out, r), float32.
        v: Right factors (r, d_in), float32.
        loss: What a truncation cost, or None when nothing was truncated.
    """

    site: Site
    layout: str
    u: Float32Array = attrs.field(converter=float_matrix)
    v: Float32Array = attrs.field(converter=float_matrix)
    loss: Loss | None = None

    @property
    def rank(self) -> int:
        """Number of factors r."""
        return int(self.u.shape[1])

    def padded(self, rank: int) -> tuple[Float32Array, Float32Array]:
        """Return U (d_out, rank) and V (rank, d_in) with zeros added; the product stays."""
        more = rank - self.rank
        return np.pad(self.u, ((0, 0), (0, more))), np.pad(self.v, ((0, more), (0, 0)))


def module_factors(
    patches: Sequence[Scaled],
    *,
    lossy_rank: int | None = None,
    progress: Progress | None = None,
) -> tuple[ModuleFactors, ...]:
    """Return the sum of patches as one product for each module, in the order of the modules' names.

    Args:
        patches: Patches of one base, with the factor on each; the order does not matter.
        lossy_rank: Rank to truncate full matrices to; None refuses them.
        progress: Where to report to; truncating a large matrix takes a minute.

    Raises:
        InvalidParameterError: There are no patches, or the rank is not positive.
        StackConflictError: A patch is given twice, or excludes another.
        BaseMismatchError: They are for different bases.
        ExportError: A change is no low-rank change of one module's weight alone.
    """
    check_together(patches)
    refuse_module_entries((patch for patch, _ in patches), "a LoRA")
    if lossy_rank is not None and lossy_rank < 1:
        raise InvalidParameterError(
            f"The rank is {lossy_rank}; it must be 1 or more.", rank=lossy_rank
        )
    base = common_base([patch for patch, _ in patches])
    by_module: dict[str, list[tuple[WeightEntry, float]]] = {}
    for patch, scale in sorted(patches, key=lambda item: item[0].header.id):
        for entry in patch.weight_entries:
            _check_expressible(entry, patch, base)
            by_module.setdefault(entry.site.module, []).append((entry, scale))
    shown = progress or SilentProgress()
    shown.start("Collecting factors", len(by_module))
    made = []
    try:
        for name in sorted(by_module):
            made.append(_factors(by_module[name], base, lossy_rank))
            shown.advance(note=name)
    finally:
        shown.finish()
    return tuple(made)


def check_together(patches: Sequence[Scaled]) -> None:
    """Check that patches may be used together at all.

    Raises:
        InvalidParameterError: There are none.
        StackConflictError: One is given twice, or excludes another.
    """
    if not patches:
        raise InvalidParameterError("No patches were given. Give at least one.")
    ids = [patch.header.id for patch, _ in patches]
    for patch, _ in patches:
        if ids.count(patch.header.id) > 1:
            raise StackConflictError(
                f"The patch {patch.header.id} is given twice. Give it once.", patch=patch.header.id
            )
        for other in set(patch.header.conflicts) & set(ids):
            raise StackConflictError(
                f"The patch {patch.header.id} says that it must not be used with {other}. Leave "
                "one out.",
                patch=patch.header.id,
            )


def _check_expressible(entry: WeightEntry, patch: Patch, base: BaseFingerprint) -> None:
    site = entry.site
    if site.parameter != f"{site.module}.weight":
        raise ExportError(
            f"The patch {patch.header.id} changes {site.parameter}, which is not the weight of "
            f"{site.module}; a LoRA changes weights only. Export it to a checkpoint instead.",
            patch=patch.header.id,
            parameter=site.parameter,
        )
    for group in base.tied:
        if site.parameter in group:
            others = ", ".join(name for name in group if name != site.parameter)
            raise ExportError(
                f"{site.parameter} shares its tensor with {others}: the patch "
                f"{patch.header.id} changes both, a LoRA would change one. Export it to a "
                "checkpoint instead.",
                patch=patch.header.id,
                parameter=site.parameter,
            )


def _factors(
    changes: Sequence[tuple[WeightEntry, float]], base: BaseFingerprint, lossy_rank: int | None
) -> ModuleFactors:
    site = changes[0][0].site
    pairs = [(entry.factors(), scale) for entry, scale in changes]
    parts = [Factored.of(pair, scale) for pair, scale in pairs if pair is not None]
    full = [(entry, scale) for entry, scale in changes if entry.factors() is None]
    loss = None
    if full:
        truncated, loss = _truncated(full, parts, site.parameter, lossy_rank)
        parts = [*parts, truncated]
    whole = Factored.sum(parts)
    try:
        return ModuleFactors(
            site=site,
            layout=base.tensors[site.parameter].layout,
            u=whole.u,
            v=whole.v,
            loss=loss,
        )
    except ValueError as error:
        raise ExportError(
            f"With its scale the change of {site.parameter} does not fit float32: {error}. Choose "
            "a smaller scale.",
            parameter=site.parameter,
        ) from None


def _truncated(
    full: Sequence[tuple[WeightEntry, float]],
    exact: Sequence[Factored],
    parameter: str,
    lossy_rank: int | None,
) -> tuple[Factored, Loss]:
    """Truncate the full matrices of one weight, and measure the loss on its whole change."""
    kinds = ", ".join(sorted({entry.kind for entry, _ in full}))
    if lossy_rank is None:
        raise ExportError(
            f"{parameter} is changed by a full matrix ({kinds}), which no LoRA of small rank holds "
            "exactly. Export to a checkpoint instead, or accept a truncation with --lossy --rank "
            "R; what it loses is reported.",
            parameter=parameter,
            kind=kinds,
        )
    asked: Float64Array = np.asarray(
        sum(scale * entry.delta().numpy() for entry, scale in full), dtype=np.float64
    )
    kept = truncate(asked, lossy_rank)
    wanted = sum((part.u @ part.v for part in exact), start=asked)  # (d_out, r) @ (r, d_in)
    given = Factored.sum([*exact, kept])
    made = given.u.astype(np.float32).astype(np.float64) @ given.v.astype(np.float32)
    return kept, Loss.between(wanted, made, parameter=parameter, rank=kept.rank)
