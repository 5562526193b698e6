"""What is solved in a layer of a window, and what came of it: the values that pass between stages.

Legend: d_out, d_in: sides of a weight; n: edits; p: earlier edits; d: width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import torch
from torch import Tensor

from editkit_core.numerics.batch_solve import Change, Solves
from editkit_core.numerics.history import NO_KEYS
from editkit_core.patch.overlay import Overlay
from editkit_core.types import Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.numerics.value_opt import ValueResult
    from editkit_core.patch.kinds import WeightEntry

__all__ = ["LayerChange", "LayerStatistics", "Solve", "Stream", "System", "Target", "WindowEdit"]


class LayerStatistics(Solves, Protocol):
    """What a layer is solved with: C, factored, or a projection."""

    @property
    def origin(self) -> dict[str, Any]:  # Any: JSON values
        """Where it comes from, for a patch's metrics."""

    def gram(self, rows: Tensor) -> Tensor:
        """Return V C Vᵀ for ``rows (n, d_in)``, ``(n, n)`` float64 on the CPU."""


@attrs.frozen(eq=False, kw_only=True)
class System:
    """What one layer is to solve.

    Attributes:
        site: The weight.
        keys: K, ``(d_in, n)`` float64 on the CPU.
        residuals: R, ``(d_out, n)`` float64 on the CPU.
        covariance: C of the layer, or what the method solves with in its place.
        earlier: K_p, ``(d_in, p)`` float64 on the CPU: keys of edits that are on the model already
            and are to keep what they have; p may be 0.
    """

    site: Site
    keys: Tensor
    residuals: Tensor
    covariance: LayerStatistics
    earlier: Tensor = NO_KEYS


Solve = Callable[[System], Change]


@attrs.frozen(eq=False, kw_only=True)
class Target:
    """The value an edit is to reach at the last layer.

    Attributes:
        value: z, ``(d,)`` float64 on the CPU.
        found: How it was found.
    """

    value: Tensor
    found: ValueResult


@attrs.frozen(eq=False, kw_only=True)
class Stream:
    """What is to be reached at one kind of projection.

    Attributes:
        sites: The projection of each layer of the window, from the first on.
        targets: Z, ``(n, d)`` float64: what ``read`` is to give at the edited tokens.
        covariances: C of each layer.
        read: Module whose output is to reach Z.
    """

    sites: Sequence[Site]
    targets: Tensor
    covariances: Sequence[LayerStatistics]
    read: str


@attrs.frozen(eq=False, kw_only=True)
class LayerChange:
    """The change of one layer and how it came about.

    Attributes:
        site: The weight.
        change: Δ = u v.
        keys: K, ``(d_in, n)`` float64.
        missing: ‖z - h‖ of each edit before this layer changed, ``(n,)`` float64.
        weight_norm: ‖W‖, in Frobenius norm.
    """

    site: Site
    change: Change
    keys: Tensor
    missing: Tensor
    weight_norm: float

    @classmethod
    def joined(cls, changes: Sequence[LayerChange]) -> LayerChange:
        """Return changes of one layer, each computed on top of those before it, as one."""
        first = changes[0]
        return cls(
            site=first.site,
            change=Change(
                u=torch.cat([part.change.u for part in changes], dim=1),
                v=torch.cat([part.change.v for part in changes]),
                condition=max(part.change.condition for part in changes),
            ),
            keys=torch.cat([part.keys for part in changes], dim=1),
            missing=torch.cat([part.missing for part in changes]),
            weight_norm=first.weight_norm,
        )

    @property
    def relative_norm(self) -> float:
        """‖Δ‖ / ‖W‖."""
        u, v = self.change.u, self.change.v
        gram = (u.T @ u) * (v @ v.T)  # (n, n)
        return float(gram.sum().clamp(min=0).sqrt()) / self.weight_norm

    @property
    def entry(self) -> WeightEntry:
        """The change as a patch entry: factors, or the full matrix where that is smaller."""
        from editkit_core.patch.format import DenseEntry, LowRankEntry

        u, v = self.change.u, self.change.v
        (d_out, n), d_in = u.shape, v.shape[1]
        if n * (d_out + d_in) < d_out * d_in:
            return LowRankEntry(site=self.site, u=u.float().numpy(), v=v.float().numpy())
        return DenseEntry(site=self.site, delta=(u @ v).float().numpy())


@attrs.frozen(eq=False, kw_only=True)
class WindowEdit:
    """The changes of a window.

    Attributes:
        layers: One a layer and projection, in the order they were made.
        left: ‖z - h‖ of each edit after all layers changed, ``(n,)`` float64.
        left_before: As ``left``, of the streams that were written before it.
    """

    layers: tuple[LayerChange, ...]
    left: Tensor
    left_before: tuple[Tensor, ...] = ()

    @classmethod
    def joined(cls, parts: Sequence[WindowEdit]) -> WindowEdit:
        """Return the changes of the parts of a batch as one; they add up."""
        if len(parts) == 1:
            return parts[0]
        layers = zip(*(part.layers for part in parts), strict=True)
        return cls(
            layers=tuple(LayerChange.joined(changes) for changes in layers),
            left=torch.cat([part.left for part in parts]),
            left_before=tuple(
                torch.cat(lefts) for lefts in zip(*(p.left_before for p in parts), strict=True)
            ),
        )

    @contextmanager
    def shown(self, model: EditableModel) -> Iterator[None]:
        """Let a model behave as if it were changed; its weights stay as they are."""
        with ExitStack() as shown:
            for layer in self.layers:
                side = Overlay(model.module(layer.site.module), [(layer.entry, 1.0)])
                shown.callback(side.remove)
            yield
