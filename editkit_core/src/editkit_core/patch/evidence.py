"""What a patch may hold besides its entries: the edit keys, and a canary to check it by."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from editkit_core.patch.kinds.arrays import (
    Float32Array,
    Int64Array,
    float_matrix,
    float_vector,
    whole_matrix,
    whole_vector,
)

PADDING = -1
_MOST_F16 = float(np.finfo(np.float16).max)


@attrs.frozen(eq=False, kw_only=True)
class Evidence:
    """The keys an edit was made for, to compute crosstalk with other patches.

    For comparing, which needs three digits, a file holds them as float16 where they fit. Those
    that a batch was solved with are exact: with them it can be solved again without an edit.

    n: edits, in the order of ``header.edits``; d_in, d_out: sides of the weight.

    Attributes:
        module: The edited module's path.
        keys: Key of each edit (n, d_in), float32.
        values: Value of each edit (n, d_out), float32, or None.
        exact: Whether a file holds the keys as float32.
    """

    module: str
    keys: Float32Array = attrs.field(converter=float_matrix)
    values: Float32Array | None = attrs.field(
        default=None, converter=attrs.converters.optional(float_matrix)
    )
    exact: bool = False

    def __attrs_post_init__(self) -> None:
        if self.values is not None and len(self.values) != len(self.keys):
            raise ValueError(
                f"evidence has {len(self.keys)} keys and {len(self.values)} values; give one of "
                "each an edit"
            )

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:  # Any: element type and shape
        """Return the arrays to store, by field."""
        held = {"keys": self.keys if self.exact else _short(self.keys)}
        return held if self.values is None else held | {"values": _short(self.values)}


def _short(array: Float32Array) -> np.ndarray[Any, Any]:  # Any: element type and shape
    return array.astype("<f2") if np.abs(array).max(initial=0.0) <= _MOST_F16 else array


@attrs.frozen(eq=False, kw_only=True)
class Canary:
    """Log-probabilities that the patched model must give, to check it by what it does.

    n: probes; length: tokens of the longest.

    Attributes:
        tokens: Prompt and target ids (n, length), int64, padded at the end with -1.
        prompt_lengths: How many of them are the prompt (n,), int64.
        before: log p(target | prompt) without the patch (n,), float32.
        after: The same with it (n,), float32.
    """

    tokens: Int64Array = attrs.field(converter=whole_matrix)
    prompt_lengths: Int64Array = attrs.field(converter=whole_vector)
    before: Float32Array = attrs.field(converter=float_vector)
    after: Float32Array = attrs.field(converter=float_vector)

    def __attrs_post_init__(self) -> None:
        rows = {len(array) for array in self.tensors().values()}
        if len(rows) != 1:
            raise ValueError("the canary's arrays must have one row a probe")
        real = (self.tokens >= 0).sum(axis=1)
        padded_last = (np.diff((self.tokens >= 0).astype(np.int8), axis=1) <= 0).all()
        if not padded_last or (self.tokens < PADDING).any():
            raise ValueError("the canary's token ids must be 0 or more, with -1 only at the end")
        if (self.prompt_lengths < 1).any() or (self.prompt_lengths >= real).any():
            raise ValueError("each canary probe needs at least one prompt and one target token")

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:  # Any: element type and shape
        """Return the arrays to store, by field."""
        return {
            "tokens": self.tokens,
            "prompt_lengths": self.prompt_lengths,
            "before": self.before,
            "after": self.after,
        }
