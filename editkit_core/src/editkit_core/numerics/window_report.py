"""What a patch says about how a batch was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from editkit_core.numerics.probability import target_probabilities
from editkit_core.numerics.window_change import LayerStatistics, Target, WindowEdit
from editkit_core.types import EditRequest

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["batch_report"]


def batch_report(
    model: EditableModel,
    requests: Sequence[EditRequest],
    targets: Sequence[Target],
    edit: WindowEdit,
    covariances: Sequence[LayerStatistics],
) -> Mapping[str, Any]:  # Any: JSON values
    """Return what a patch says about how it was made, as JSON values.

    Lists have one number an edit, in the order of the requests. Where more than one kind of
    projection changed, each layer's numbers say of which they are.
    """
    attention: dict[str, Any] = {}  # Any: JSON values
    alone = [target.found.without_attention for target in targets]
    if None not in alone:
        attention["p_target_without_attention"] = [_rounded(p) for p in alone if p is not None]
    if edit.left_before:
        (left,) = edit.left_before
        attention["missing_left_attention"] = [_rounded(value) for value in left.tolist()]
    several = len({layer.site.role for layer in edit.layers}) > 1
    before = target_probabilities(model, requests)
    with edit.shown(model):
        after = target_probabilities(model, requests)
    return {
        "layers": [
            {
                "layer": layer.site.layer,
                **({"role": layer.site.role} if several else {}),
                "delta_norm_relative": _rounded(layer.relative_norm),
                "missing_mean": _rounded(float(layer.missing.mean())),
                "condition": _rounded(layer.change.condition),
                "covariance": covariance.origin,
            }
            for layer, covariance in zip(edit.layers, covariances, strict=True)
        ],
        "missing_left": [_rounded(value) for value in edit.left.tolist()],
        "p_target_before": [_rounded(value) for value in before],
        "p_target_after": [_rounded(value) for value in after],
        "p_target_with_value": [_rounded(t.found.probabilities[-1]) for t in targets],
        "updates": [target.found.updates for target in targets],
        **attention,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")  # six digits are enough to judge an edit by
