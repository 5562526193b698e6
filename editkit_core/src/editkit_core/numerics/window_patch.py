"""A patch from the changes of a window of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editkit_core.numerics.window_change import Target, WindowEdit
from editkit_core.params import unstructure
from editkit_core.patch.digests import stack_digest
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import Evidence, MethodRef, Patch
from editkit_core.patch.kinds.arrays import Float32Array
from editkit_core.types import EditContext, EditRequest

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel

__all__ = ["window_patch"]


def window_patch(
    model: EditableModel,
    requests: Sequence[EditRequest],
    targets: Sequence[Target],
    edit: WindowEdit,
    *,
    method: MethodRef,
    params: Any,  # Any: each method has its own attrs class
    contexts: Sequence[str],
    context: EditContext,
    metrics: Mapping[str, Any],  # Any: JSON values
    keys: Sequence[Tensor] | None = None,
) -> Patch:
    """Return the patch of a batch of edits.

    Args:
        model: The model the changes were computed for.
        requests: The facts.
        targets: Their values.
        edit: The changes.
        method: Who computed them.
        params: With which parameters.
        contexts: Texts that were put before the prompts.
        context: Seed and stack.
        metrics: What is said about how the changes came about.
        keys: K ``(d_in, n)`` of each layer to store as evidence; None takes those solved with.
    """
    stored = [layer.keys for layer in edit.layers] if keys is None else keys
    written = _values([target.value for target in targets])
    attention = [target.found.attention_value for target in targets]
    return Patch.from_parts(
        entries=[layer.entry for layer in edit.layers],
        method=method,
        base=base_fingerprint(model, [layer.site.parameter for layer in edit.layers]),
        edits=requests,
        params=unstructure(params),
        seed=context.seed,
        contexts=contexts,
        evidence=[
            Evidence(
                module=layer.site.module,
                keys=key.T.float().numpy(),
                values=_values(attention) if layer.site.role == "attn_out" else written,
                exact=True,
            )
            for layer, key in zip(edit.layers, stored, strict=True)
        ],
        metrics=metrics,
        computed_on=stack_digest(context.stack),
    )


def _values(each: Sequence[Tensor | None]) -> Float32Array:
    """Return one value an edit, ``(n, d)``."""
    return torch.stack([value for value in each if value is not None]).float().numpy()
