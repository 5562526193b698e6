"""Patch files: written atomically, read strictly.

Reading goes: length, header, limits, layout, metadata with its digests, then the tensors' bytes
(once), their digests, their values. The first thing that does not hold is refused, saying where.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from editkit_core.atomic import write_file
from editkit_core.errors import InputNotFoundError, PatchDigestError, PatchError, PatchFormatError
from editkit_core.patch import digests
from editkit_core.patch.container import (
    LENGTH_BYTES,
    Layout,
    RawTensor,
    Slot,
    encode,
    parse_layout,
    refusal,
)
from editkit_core.patch.evidence import Canary, Evidence
from editkit_core.patch.format import Patch
from editkit_core.patch.header import PatchHeader
from editkit_core.patch.header_codec import decode_header, encode_header
from editkit_core.patch.kinds import BUILTIN_KINDS, Entry, Kinds, find_kind
from editkit_core.patch.strict import (
    DTYPES,
    KEY,
    MAX_HEADER_BYTES,
    MAX_METADATA_BYTES,
    MAX_TENSORS,
    check_layout,
    check_names,
    not_safetensors,
)

SUFFIX = ".editkit.safetensors"
_CONTAINER_DTYPES = {numpy_name: name for name, numpy_name in DTYPES.items()}
_EVIDENCE_DTYPES = {"keys": "F16 F32", "values": "F16 F32"}
_CANARY_DTYPES = {"tokens": "I64", "prompt_lengths": "I64", "before": "F32", "after": "F32"}


def save(patch: Patch, path: Path, *, force: bool = False) -> int:
    """Write a patch file; on any failure nothing is left and an old file stays as it was.

    Args:
        patch: What to write.
        path: The file; by convention it ends in ``.editkit.safetensors``.
        force: Replace an existing file.

    Returns:
        The file's size in bytes.

    Raises:
        OutputExistsError: The file exists and ``force`` is false.
        WriteFailedError: It cannot be written, for example for want of space.
        PatchFormatError: The metadata is larger than a reader would accept.
    """
    pieces = to_pieces(patch)
    write_file(path, pieces, force=force)
    return sum(map(len, pieces))


def to_pieces(patch: Patch) -> list[bytes]:
    """Return the bytes of a patch file, in pieces.

    Raises:
        PatchFormatError: The metadata is larger than a reader would accept.
    """
    text = encode_header(patch.header)
    if len(text.encode()) > MAX_METADATA_BYTES:
        raise PatchFormatError(
            f"The patch's metadata takes {len(text.encode())} bytes, the limit is "
            f"{MAX_METADATA_BYTES}. Split the edits over several patches, or leave out probes.",
            where="metadata",
        )
    return encode({KEY: text}, {name: _raw(array) for name, array in patch.tensors().items()})


def load(path: Path, *, kinds: Kinds | None = None) -> Patch:
    """Read and check a whole patch file.

    Args:
        path: The file.
        kinds: Entry kinds to accept; None means the core's.

    Raises:
        InputNotFoundError: The file cannot be read.
        PatchFormatError: It is not a well-formed patch file.
        PatchDigestError: It was changed after it was written.
        PatchVersionError: It is of another format version.
        UnknownPatchKindError: An entry kind that is not in ``kinds``.
        PatchShapeError: An entry does not fit the weight it names.
    """
    try:
        with path.open("rb") as file:
            layout, header = _read_head(file, str(path))
            data = bytearray(layout.data_bytes)
            if file.readinto(data) != layout.data_bytes:
                raise refusal(str(path), "data", "ends early")
    except OSError as error:
        raise _unreadable(path, error) from error
    arrays = {slot.name: _array(slot, data, header, str(path)) for slot in layout.slots}
    return _assemble(header, arrays, BUILTIN_KINDS if kinds is None else kinds, str(path))


def read_header(path: Path) -> PatchHeader:
    """Read and check a patch file's header alone; no tensor is read.

    Raises:
        InputNotFoundError: The file cannot be read.
        PatchFormatError: It is not a well-formed patch file.
        PatchDigestError: The header was changed after it was written.
        PatchVersionError: It is of another format version.
    """
    try:
        with path.open("rb") as file:
            return _read_head(file, str(path))[1]
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_head(file: BinaryIO, where: str) -> tuple[Layout, PatchHeader]:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise refusal(where, "the path", "is not a regular file")
    start = file.read(LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    if len(start) < LENGTH_BYTES or length > status.st_size - LENGTH_BYTES:
        raise not_safetensors(start, length, status.st_size, where)
    if length > MAX_HEADER_BYTES:
        raise refusal(
            where, "header", f"takes {length} bytes, a patch has at most {MAX_HEADER_BYTES}"
        )
    layout = parse_layout(file.read(length), where, max_tensors=MAX_TENSORS)
    check_layout(layout, length, where)
    if layout.data_bytes != status.st_size - LENGTH_BYTES - length:
        raise refusal(
            where, "data", f"takes {status.st_size - LENGTH_BYTES - length} bytes, the header "
            f"announces {layout.data_bytes}",
        )  # fmt: skip
    header = decode_header(layout.metadata[KEY], where)
    check_names(layout, header, where)
    return layout, header


def _array(slot: Slot, data: bytearray, header: PatchHeader, where: str) -> np.ndarray[Any, Any]:
    flat = np.frombuffer(data, DTYPES[slot.dtype], offset=slot.start, count=_count(slot))
    array = flat.reshape(slot.shape)
    array.flags.writeable = False
    found = digests.tensor_digest(slot.name, array)
    if found != header.tensors[slot.name]:
        raise PatchDigestError(
            f"{where}: tensor {slot.name} has the digest {found}, the header says "
            f"{header.tensors[slot.name]}. The file is damaged or was changed; get it again from "
            "its source.",
            where=slot.name,
            expected=header.tensors[slot.name],
            found=found,
        )
    return array


def _count(slot: Slot) -> int:
    return (slot.stop - slot.start) // np.dtype(DTYPES[slot.dtype]).itemsize


def _assemble(
    header: PatchHeader, arrays: dict[str, np.ndarray[Any, Any]], kinds: Kinds, where: str
) -> Patch:
    entries: list[Entry] = []
    part = "entries"
    try:
        for i, stated in enumerate(header.entries):
            part = f"entry {i} ({stated.kind:.60})"
            kind = find_kind(kinds, stated.kind, header.method)
            entries.append(kind.from_tensors(stated.site, _take(arrays, f"{i}.", kind.dtypes)))
        blocks = []
        for i, module in enumerate(header.evidence):
            part = f"evidence {i}"
            optional = {k: d for k, d in _EVIDENCE_DTYPES.items() if f"evidence.{i}.{k}" in arrays}
            wanted = {"keys": _EVIDENCE_DTYPES["keys"], **optional}
            taken = _take(arrays, f"evidence.{i}.", wanted)
            exact = taken["keys"].dtype == np.float32
            blocks.append(Evidence(module=module, exact=exact, **taken))
        part = "canary"
        has_canary = any(name.startswith("canary.") for name in arrays)
        canary = Canary(**_take(arrays, "canary.", _CANARY_DTYPES)) if has_canary else None
        if arrays:
            part = f"tensor {min(arrays)}"
            raise ValueError("belongs to no entry")
        part = "entries"
        return Patch(header=header, entries=tuple(entries), evidence=tuple(blocks), canary=canary)
    except PatchError as error:
        error.message = f"{where}: {part}: {error.message}"
        raise
    except ValueError as error:
        raise refusal(where, part, f"does not hold: {error}") from None


def _take(
    arrays: dict[str, np.ndarray[Any, Any]], prefix: str, dtypes: Mapping[str, str]
) -> dict[str, np.ndarray[Any, Any]]:
    taken = {}
    for field, dtype in dtypes.items():
        if prefix + field not in arrays:
            raise ValueError(f"the tensor {prefix}{field} is missing")
        array = arrays.pop(prefix + field)
        if _CONTAINER_DTYPES[array.dtype.str] not in dtype.split():
            raise ValueError(f"the tensor {prefix}{field} must be {dtype.replace(' ', ' or ')}")
        taken[field] = array
    return taken


def _raw(array: np.ndarray[Any, Any]) -> RawTensor:
    return RawTensor(
        dtype=_CONTAINER_DTYPES[array.dtype.str], shape=array.shape, data=array.tobytes()
    )


def _unreadable(path: Path, error: OSError) -> InputNotFoundError:
    return InputNotFoundError(
        f"Cannot read the patch {path}: {error.strerror or error}. Check the path.", path=str(path)
    )
