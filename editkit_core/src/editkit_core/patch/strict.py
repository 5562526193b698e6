"""The rules a patch file's header must keep, beyond being a well-formed container."""

from __future__ import annotations

import re

from editkit_core.errors import PatchFormatError
from editkit_core.patch.container import LENGTH_BYTES, Layout, refusal, shorten
from editkit_core.patch.header import PatchHeader

KEY = "editkit"
MAX_METADATA_BYTES = 1024 * 1024
MAX_METADATA_VALUES = 131_072
MAX_HEADER_BYTES = 3 * 1024 * 1024
MAX_TENSORS = 4096
_NAME = re.compile(r"(?:[0-9]{1,6}|evidence\.[0-9]{1,6}|canary)\.[a-z][a-z0-9_]{0,31}")
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I8": "|i1", "U8": "|u1"}
_FOREIGN = (
    (b"<", "an HTML or XML page, probably a failed download"),
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch file"),
    (b"\x80", "a Python pickle"),
    (b"version ", "a Git LFS pointer: fetch the file itself with git lfs pull"),
    (b"GGUF", "a GGUF model"),
    (b"{", "JSON text"),
)


def not_safetensors(start: bytes, length: int, size: int, where: str) -> PatchFormatError:
    """Return the error for bytes that do not begin like a container."""
    what = next((what for sign, what in _FOREIGN if start.startswith(sign)), None)
    looks = f"It looks like {what}." if what else "It is truncated, or not a safetensors file."
    return PatchFormatError(
        f"{where}: not a patch file: it has {size} bytes and its first 8 announce a header of "
        f"{length}. {looks} Get the patch again from its source.",
        where="length",
        path=where,
    )


def check_layout(layout: Layout, length: int, where: str) -> None:
    """Check a header against what patches use: metadata, limits, names, dtypes.

    Raises:
        PatchFormatError: It is no patch's header.
    """
    if KEY not in layout.metadata:
        raise PatchFormatError(
            f"{where}: this is a safetensors file but not an editkit patch: its metadata has no "
            f"key {KEY!r}. Patches are made with `editkit edit`.",
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
    for slot in layout.slots:
        if slot.name.startswith("editor."):
            raise PatchFormatError(
                f"{where}: this is a trained editor, not a patch. Edit with it: editkit edit "
                "--editor FILE; `editkit patch show` says what it is.",
                where="tensors",
                path=where,
            )
        if not _NAME.fullmatch(slot.name):
            raise refusal(where, f"tensor {shorten(slot.name)}", "has a name no patch uses")
        short = slot.dtype == "F16" and not slot.name.startswith("evidence.")
        if slot.dtype not in DTYPES or short:
            raise refusal(where, f"tensor {slot.name}", f"has the dtype {slot.dtype}")
        if slot.start == slot.stop:
            raise refusal(where, f"tensor {slot.name}", "is empty")


def check_names(layout: Layout, header: PatchHeader, where: str) -> None:
    """Check that the file holds exactly the tensors that the metadata lists.

    Raises:
        PatchFormatError: One is missing or too many.
    """
    found, stated = {slot.name for slot in layout.slots}, set(header.tensors)
    for name in sorted(found ^ stated):
        what = "is in the file but not in the metadata" if name in found else "is missing"
        raise refusal(where, f"tensor {shorten(name)}", what)
