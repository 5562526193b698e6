"""Editor files: written atomically, read strictly; the container is that of patches.

Reading goes: length, header, limits, layout, metadata with its digests, then the tensors' bytes
(once), their digests, their values. The first thing that does not hold is refused, saying where.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import cattrs.errors
import numpy as np

from editkit_core.atomic import write_file
from editkit_core.errors import (
    EditkitError,
    InputNotFoundError,
    PatchDigestError,
    PatchFormatError,
    PatchVersionError,
)
from editkit_core.params import converter, format_exceptions
from editkit_core.patch import digests
from editkit_core.patch.artifact import (
    ELEMENTS,
    LONGEST_NAME,
    NAME,
    SPEC,
    SUBJECTS,
    TENSORS,
    Array,
    EditorArtifact,
    EditorHeader,
    stored_tensors,
)
from editkit_core.patch.container import (
    LENGTH_BYTES,
    Layout,
    RawTensor,
    Slot,
    encode,
    parse_json,
    parse_layout,
    refusal,
    shorten,
)
from editkit_core.patch.header_codec import to_json
from editkit_core.patch.strict import (
    DTYPES,
    KEY,
    MAX_HEADER_BYTES,
    MAX_METADATA_BYTES,
    MAX_TENSORS,
    not_safetensors,
)

__all__ = ["FILE_NAME", "is_editor", "load", "save", "sealed"]

FILE_NAME = "editor.safetensors"
_NAMES = {text: name for name, text in DTYPES.items()}
_FAMILY = SPEC.partition("/")[0]
_WHOLE = re.compile(r"0|[1-9][0-9]{0,18}")


def save(artifact: EditorArtifact, path: Path, *, overwrite: bool = False) -> int:
    """Write an editor's file; on any failure nothing is left and an old file stays as it was.

    Raises:
        OutputExistsError: The file exists and ``overwrite`` is false.
        WriteFailedError: It cannot be written.
        PatchFormatError: The metadata is larger than a reader would accept.
    """
    text = digests.canonical(_to_json(artifact.header), "metadata").decode()
    if len(text.encode()) > MAX_METADATA_BYTES:
        raise PatchFormatError(
            f"The editor's metadata takes {len(text.encode())} bytes, the limit is "
            f"{MAX_METADATA_BYTES}.",
            where="metadata",
        )
    tensors = stored_tensors(artifact.tensors, artifact.subjects)
    pieces = encode({KEY: text}, {name: _raw(array) for name, array in tensors.items()})
    write_file(path, pieces, force=overwrite)
    return sum(map(len, pieces))


def load(path: Path) -> EditorArtifact:
    """Read and check a whole editor file; of a training run's folder, the editor in it.

    Raises:
        InputNotFoundError: It cannot be read.
        PatchFormatError: It is not a well-formed editor.
        PatchDigestError: It was changed after it was written.
        PatchVersionError: It is of another format version.
    """
    file = path / FILE_NAME if path.is_dir() else path
    where = str(file)
    try:
        with file.open("rb") as opened:
            layout, header = _read_head(opened, where)
            data = bytearray(layout.data_bytes)
            if opened.readinto(data) != layout.data_bytes:
                raise refusal(where, "data", "ends early")
    except OSError as error:
        raise InputNotFoundError(
            f"Cannot read the editor {file}: {error.strerror or error}. Check the path; editors "
            "are made with `editkit train`.",
            path=where,
        ) from error
    arrays = {slot.name: _array(slot, data, header, where) for slot in layout.slots}
    subjects = arrays.pop(SUBJECTS, None)
    tensors = {name.removeprefix(TENSORS): array for name, array in arrays.items()}
    if not tensors:
        raise refusal(where, "tensors", "must hold at least one of the editor's")
    if subjects is None:
        return EditorArtifact(header=header, tensors=tensors)
    if subjects.dtype.str != "|u1" or subjects.ndim != 2 or subjects.shape[1] != LENGTH_BYTES:
        raise refusal(where, f"tensor {SUBJECTS}", "must be rows of 8 bytes")
    return EditorArtifact(header=header, tensors=tensors, subjects=subjects)


def is_editor(path: Path) -> bool:
    """Say whether a file announces itself as an editor; it may be damaged beyond that."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            layout = parse_layout(file.read(min(length, MAX_HEADER_BYTES)), str(path))
            fields = parse_json(layout.metadata.get(KEY, "").encode(), str(path))
    except (OSError, EditkitError):
        return False
    return isinstance(fields, dict) and str(fields.get("spec")).startswith(f"{_FAMILY}/")


def sealed(header: EditorHeader) -> EditorHeader:
    """Return the header with its id, content digest and checksum filled in.

    Raises:
        PatchFormatError: A value cannot be stored; the message says which.
    """
    digest = digests.content_digest(_to_json(header))
    named = attrs.evolve(header, id=_id(digest), content_digest=digest)
    return attrs.evolve(named, checksum=digests.checksum(_to_json(named)))


def _id(digest: str) -> str:
    return f"ed-{digest[:16]}"


def _to_json(header: EditorHeader) -> dict[str, Any]:  # Any: JSON values
    fields: dict[str, Any] = to_json(header)  # Any: as above
    fields |= {"spec": header.spec, "kind": header.kind}
    fields["training"]["seed"] = str(header.training.seed)
    return fields


def _read_head(file: BinaryIO, where: str) -> tuple[Layout, EditorHeader]:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise refusal(where, "the path", "is not a regular file")
    start = file.read(LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    if len(start) < LENGTH_BYTES or length > status.st_size - LENGTH_BYTES:
        raise not_safetensors(start, length, status.st_size, where)
    if length > MAX_HEADER_BYTES:
        raise refusal(where, "header", f"takes {length} bytes, at most {MAX_HEADER_BYTES} fit")
    layout = parse_layout(file.read(length), where, max_tensors=MAX_TENSORS)
    header = _decode(_metadata(layout, length, where), where)
    found = status.st_size - LENGTH_BYTES - length
    if layout.data_bytes != found:
        raise refusal(
            where, "data", f"takes {found} bytes, the header announces {layout.data_bytes}"
        )
    _check_tensors(layout, header, where)
    return layout, header


def _metadata(layout: Layout, length: int, where: str) -> str:
    if KEY not in layout.metadata:
        raise PatchFormatError(
            f"{where}: this is a safetensors file but not an editor: its metadata has no key "
            f"{KEY!r}. Editors are made with `editkit train`.",
            where="__metadata__",
            path=where,
        )
    others = sorted(set(layout.metadata) - {KEY})
    if others:
        raise refusal(where, "__metadata__", f"holds {shorten(others[0])} besides {KEY!r}")
    if len(layout.metadata[KEY].encode()) > MAX_METADATA_BYTES:
        raise refusal(where, "metadata", f"is larger than {MAX_METADATA_BYTES} bytes")
    if length % LENGTH_BYTES:
        raise refusal(where, "length", f"is {length}, not a multiple of {LENGTH_BYTES}")
    return layout.metadata[KEY]


def _decode(text: str, where: str) -> EditorHeader:
    fields = parse_json(text.encode(), f"{where}, metadata")
    if not isinstance(fields, dict):
        raise refusal(where, "metadata", "must be an object")
    _check_spec(fields, where)
    if digests.canonical(fields, f"{where}, metadata") != text.encode():
        raise refusal(where, "metadata", "is not canonical JSON (RFC 8785)")
    header = _structure(fields, where)
    if _to_json(header) != fields:
        raise refusal(where, "metadata", "spells out default values, which editkit never does")
    _match("content_digest", header.content_digest, digests.content_digest(fields), where)
    _match("id", header.id, _id(header.content_digest), where)
    _match("checksum", header.checksum, digests.checksum(fields), where)
    return header


def _check_spec(fields: dict[str, Any], where: str) -> None:  # Any: JSON values
    spec = fields.get("spec")
    if spec == SPEC:
        return
    if spec is None and "spec_version" in fields:
        raise PatchFormatError(
            f"{where}: this is a patch, not a trained editor. Apply it with `editkit patch apply`; "
            "editors are made with `editkit train`.",
            where="spec",
            path=where,
        )
    if isinstance(spec, str) and spec.startswith(f"{_FAMILY}/"):
        raise PatchVersionError(
            f"{where}: an editor of format {spec[:60]!r}, this editkit reads {SPEC}. Upgrade "
            "editkit-core, or train it again with this one.",
            expected=SPEC,
            found=spec,
        )
    raise refusal(where, "spec", f"must be {SPEC}, got {spec!r:.60}")


def _structure(fields: dict[str, Any], where: str) -> EditorHeader:  # Any: JSON values
    training = fields.get("training")
    seed = training.get("seed") if isinstance(training, dict) else None
    if not isinstance(training, dict) or not isinstance(seed, str) or not _WHOLE.fullmatch(seed):
        raise refusal(where, "training", "must say its seed, a whole number written as text")
    plain = {**fields, "training": {**training, "seed": int(seed)}}
    try:
        header: EditorHeader = converter().structure(plain, EditorHeader)
    except cattrs.errors.BaseValidationError as error:
        problems = "; ".join(format_exceptions(error)[:5])[:400]
        raise PatchFormatError(
            f"{where}: metadata does not fit: {problems}.", where=where
        ) from None
    except (EditkitError, TypeError, ValueError) as error:
        raise PatchFormatError(
            f"{where}: metadata does not fit: {str(error)[:400]}", where=where
        ) from None
    if header.kind != "editor":
        raise refusal(where, "kind", f"must be 'editor', got {header.kind!r:.60}")
    return header


def _check_tensors(layout: Layout, header: EditorHeader, where: str) -> None:
    """Check names and dtypes, and that the file holds exactly what the metadata lists."""
    for slot in layout.slots:
        name = slot.name.removeprefix(TENSORS)
        own = slot.name != name and NAME.fullmatch(name) and len(name) <= LONGEST_NAME
        if not own and slot.name != SUBJECTS:
            raise refusal(where, f"tensor {shorten(slot.name)}", "has a name no editor uses")
        if DTYPES.get(slot.dtype) not in ELEMENTS:
            raise refusal(where, f"tensor {slot.name}", f"has the dtype {slot.dtype}")
        if slot.start == slot.stop:
            raise refusal(where, f"tensor {slot.name}", "is empty")
    found, stated = {slot.name for slot in layout.slots}, set(header.tensors)
    for name in sorted(found ^ stated):
        what = "is in the file but not in the metadata" if name in found else "is missing"
        raise refusal(where, f"tensor {shorten(name)}", what)


def _array(slot: Slot, data: bytearray, header: EditorHeader, where: str) -> Array:
    kind = np.dtype(DTYPES[slot.dtype])
    count = (slot.stop - slot.start) // kind.itemsize
    array = np.frombuffer(data, kind, offset=slot.start, count=count).reshape(slot.shape)
    array.flags.writeable = False
    found = digests.tensor_digest(slot.name, array)
    if found != header.tensors[slot.name]:
        _match(f"tensor {slot.name}", header.tensors[slot.name], found, where)
    if kind.kind == "f" and not np.isfinite(array).all():
        raise refusal(where, f"tensor {slot.name}", "is not finite")
    return array


def _match(part: str, stated: str, computed: str, where: str) -> None:
    if stated != computed:
        raise PatchDigestError(
            f"{where}: {part} says {stated[:70]!r}, the file gives {computed!r}. It is damaged or "
            "was changed after it was written; get it again from its source, or train it again.",
            where=part,
            expected=stated,
            found=computed,
        )


def _raw(array: Array) -> RawTensor:
    return RawTensor(dtype=_NAMES[array.dtype.str], shape=array.shape, data=array.tobytes())
