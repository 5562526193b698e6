"""``gate.codebook/1``: where a prompt's state is near a key, a module's output becomes a value.

No weight changes. Outside every ball the module's output goes through as it is; how a codebook acts
on a model is in :mod:`editkit_core.patch.gate`, how one grows in
:mod:`editkit_core.patch.kinds.codebook_rules`.

Legend: n: rows; m: links between edits and rows, at least one a row; d_in, d_out: sides of the
module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import attrs
import numpy as np
import numpy.typing as npt

from editkit_core.patch.kinds.arrays import Float32Array, Int64Array, stored
from editkit_core.types import EditRequest, Site

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.kinds import Realised

Replacement = Literal["replace_last", "replace_prompt", "replace_all"]
REPLACEMENTS: tuple[Replacement, ...] = get_args(Replacement)
ByteArray = npt.NDArray[np.uint8]
DIGEST_BYTES = 32


def label_of(target_ids: Sequence[int]) -> ByteArray:
    """Return the label of a target, (32,) uint8: the SHA-256 of its token ids.

    The ids are hashed as little-endian int64, so targets share a label only when they are the same.
    """
    return _digest(np.asarray(target_ids, dtype="<i8").tobytes())


def edit_id_of(request: EditRequest) -> ByteArray:
    """Return what a codebook knows a request by, (32,) uint8: a digest of its prompt and target."""
    return _digest(f"{request.text}\0{request.target_new}".encode())


def _digest(data: bytes) -> ByteArray:
    return np.frombuffer(hashlib.sha256(data).digest(), dtype=np.uint8)


def _matrix(value: Any) -> Float32Array:  # Any: array-like
    return _fit(value, "<f4", 2)


def _vector(value: Any) -> Float32Array:  # Any: array-like
    return _fit(value, "<f4", 1)


def _wholes(value: Any) -> Int64Array:  # Any: array-like
    return _fit(value, "<i8", 1)


def _digests(value: Any) -> ByteArray:  # Any: array-like
    return _fit(value, "|u1", 2)


def _fit(value: Any, dtype: str, sides: int) -> npt.NDArray[Any]:  # Any: array-like; element type
    """Return an array as :func:`stored` makes it; one without rows is let through."""
    given = np.asarray(value)
    if given.ndim == sides and given.shape[0] == 0 and 0 not in given.shape[1:]:
        empty = np.zeros(given.shape, dtype=dtype)
        empty.flags.writeable = False
        return empty
    return stored(value, dtype, sides)


@attrs.frozen(eq=False, kw_only=True)
class Codebook:
    """Keys with their balls, and the values that stand there.

    A row may stand for several edits of one target: each edit is linked to the row it relies on,
    with the radius it needs there. A row's own radius is the largest of these; its radius is
    smaller where a row of another label is near.

    Attributes:
        keys: Inputs of the module (n, d_in), float32.
        values: Outputs of the module (n, d_out), float32.
        radii: Radius of each row's ball (n,), float32; a row of radius 0 is silent.
        labels: What each row answers (n, 32), uint8; see :func:`label_of`.
        cause: The row that keeps a radius below the row's own (n,), int64; -1 for none.
        edit_ids: Edit of each link (m, 32), uint8; see :func:`edit_id_of`.
        edit_rows: Row of each link (m,), int64; by default link i is of row i.
        reaches: Radius that each link needs (m,), float32; by default its row's radius.
        replacement: Where a routed prompt's outputs are replaced: ``replace_last`` at its query,
            ``replace_prompt`` before it, ``replace_all`` everywhere, generated tokens included.
    """

    keys: Float32Array = attrs.field(converter=_matrix)
    values: Float32Array = attrs.field(converter=_matrix)
    radii: Float32Array = attrs.field(converter=_vector)
    labels: ByteArray = attrs.field(converter=_digests)
    cause: Int64Array = attrs.field(converter=_wholes)
    edit_ids: ByteArray = attrs.field(converter=_digests)
    edit_rows: Int64Array = attrs.field(converter=_wholes)
    reaches: Float32Array = attrs.field(converter=_vector)
    replacement: Replacement = "replace_last"

    @cause.default
    def _no_cause(self) -> Int64Array:
        return np.full(len(self.keys), -1, dtype=np.int64)

    @edit_rows.default
    def _one_each(self) -> Int64Array:
        return np.arange(len(self.keys), dtype=np.int64)

    @reaches.default
    def _as_radii(self) -> Float32Array:
        return self.radii

    def __attrs_post_init__(self) -> None:
        n, m = len(self.keys), len(self.edit_ids)
        lengths = {"values": n, "radii": n, "labels": n, "cause": n, "edit_rows": m, "reaches": m}
        for name, wanted in lengths.items():
            if len(getattr(self, name)) != wanted:
                rows = "one a row" if wanted == n else "one a link"
                raise ValueError(
                    f"{name} must hold {wanted}, {rows}, got {len(getattr(self, name))}"
                )
        for name in ("labels", "edit_ids"):
            if getattr(self, name).shape[1] != DIGEST_BYTES:
                raise ValueError(f"{name} must be digests of {DIGEST_BYTES} bytes")
        if (self.radii < 0).any() or (self.reaches < 0).any():
            raise ValueError("a radius is below 0")
        if (self.cause < -1).any() or (self.cause >= n).any():
            raise ValueError(f"a cause is no row: it must be from -1 to {n - 1}")
        if n and (self.cause == np.arange(n)).any():
            raise ValueError("a row is its own cause")
        if set(self.edit_rows.tolist()) != set(range(n)):
            raise ValueError("edit_rows must name every row, and nothing else")
        if (self.radii > self.radii_before).any():
            raise ValueError("a radius is above what its edits reach")
        if self.replacement not in REPLACEMENTS:
            raise ValueError(
                f"there is no replacement {self.replacement!r}; use {', '.join(REPLACEMENTS)}"
            )

    @classmethod
    def empty(cls, d_in: int, d_out: int, replacement: Replacement = "replace_last") -> Codebook:
        """Return a codebook without rows, to insert into."""
        return cls(
            keys=np.zeros((0, d_in), np.float32),
            values=np.zeros((0, d_out), np.float32),
            radii=np.zeros(0, np.float32),
            labels=np.zeros((0, DIGEST_BYTES), np.uint8),
            edit_ids=np.zeros((0, DIGEST_BYTES), np.uint8),
            replacement=replacement,
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def radii_before(self) -> Float32Array:
        """Each row's own radius (n,), float32: what its edits reach, were no other label near."""
        own = np.zeros(len(self), np.float32)
        np.maximum.at(own, self.edit_rows, self.reaches)
        return own

    def rows_of(self, edit_id: ByteArray) -> tuple[int, ...]:
        """Return the rows that an edit relies on; none when it is not in the codebook."""
        found = (self.edit_ids == edit_id).all(axis=1)
        return tuple(int(row) for row in self.edit_rows[found])

    def edits_of(self, row: int) -> tuple[str, ...]:
        """Return the edits that rely on a row, as hexadecimal digests."""
        return tuple(
            self.edit_ids[i].tobytes().hex() for i in np.flatnonzero(self.edit_rows == row)
        )


@attrs.frozen(eq=False, kw_only=True)
class CodebookEntry:
    """A codebook on one module; its weights stay as they are.

    Attributes:
        site: The module it gates; its weight is only fingerprinted.
        codebook: Its rows, at least one.
    """

    kind: ClassVar[str] = "gate.codebook/1"
    level: ClassVar[Literal["module"]] = "module"
    dtypes: ClassVar[Mapping[str, str]] = {
        "keys": "F32",
        "values": "F32",
        "radii": "F32",
        "labels": "U8",
        "cause": "I64",
        "edit_ids": "U8",
        "edit_rows": "I64",
        "reaches": "F32",
        "replacement": "U8",
    }

    site: Site
    codebook: Codebook

    def __attrs_post_init__(self) -> None:
        if not len(self.codebook):
            raise ValueError("a codebook must hold at least one row")

    @property
    def shape(self) -> tuple[int, int]:
        """Sides (d_out, d_in) of the module it fits."""
        return self.codebook.values.shape[1], self.codebook.keys.shape[1]

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:  # Any: element type and shape
        """Return the arrays to store, by field; ``replacement`` as its place among the modes."""
        book = self.codebook
        code = np.array([REPLACEMENTS.index(book.replacement)], dtype=np.uint8)
        return {name: getattr(book, name) for name in self.dtypes if name != "replacement"} | {
            "replacement": code
        }

    @classmethod
    def from_tensors(cls, site: Site, tensors: Mapping[str, np.ndarray[Any, Any]]) -> CodebookEntry:
        """Build the entry from stored arrays."""
        code = tensors["replacement"]
        if code.shape != (1,) or code[0] >= len(REPLACEMENTS):
            raise ValueError(f"replacement must be one number below {len(REPLACEMENTS)}")
        rest = {name: array for name, array in tensors.items() if name != "replacement"}
        return cls(site=site, codebook=Codebook(**rest, replacement=REPLACEMENTS[int(code[0])]))

    def norm(self) -> float:
        """Return ‖values‖_F, in float64; how large what it puts in is, not how much it changes."""
        return float(np.linalg.norm(self.codebook.values.astype(np.float64)))

    def facts(self) -> dict[str, Any]:  # Any: JSON values
        """Return what there is to say about it, as JSON values."""
        book = self.codebook
        return {
            "rows": len(book),
            "edits": len({edit.tobytes() for edit in book.edit_ids}),
            "labels": len({label.tobytes() for label in book.labels}),
            "radii": [float(book.radii.min()), float(book.radii.max())],
            "shrunk": int((book.cause >= 0).sum()),
            "silent": int((book.radii == 0).sum()),
            "replacement": book.replacement,
        }

    @classmethod
    def realise(
        cls, model: EditableModel, module: str, entries: Sequence[CodebookEntry]
    ) -> Realised:
        """Put codebooks on a module as one; see :func:`editkit_core.patch.gate.put_gate`.

        Args:
            model: The model.
            module: The module.
            entries: The codebooks in the order of the stack, at least one.

        Raises:
            ApplyError: They replace at different places, or the module cannot be gated.
        """
        from editkit_core.patch.gate import put_gate

        return put_gate(model, module, [entry.codebook for entry in entries])
