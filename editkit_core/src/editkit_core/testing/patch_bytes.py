"""Take a patch file's bytes apart and put them together again, right or wrong.

Written against the format's description and the official container's, not with editkit's writer,
so that it can make what that would refuse to.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import rfc8785

from editkit_core.patch import digests
from editkit_core.patch.evidence import Canary, Evidence
from editkit_core.patch.format import Patch
from editkit_core.patch.header import BaseFingerprint, MethodRef, TensorFingerprint
from editkit_core.patch.io import to_pieces
from editkit_core.patch.kinds.low_rank import LowRankEntry
from editkit_core.types import EditRequest, Site

Fields = dict[str, Any]  # Any: JSON values
SITE = Site(module="h.0.mlp.c_proj", parameter="h.0.mlp.c_proj.weight", layer=0)
_KEY = "editkit"


def sample_file(*, canary: bool = False) -> bytes:
    """Return a small well-formed patch file: one rank-one entry on a 2 x 3 weight, one key."""
    tensor = TensorFingerprint(shape=(3, 2), dtype="F16", sha256="0" * 64, layout="in_out")
    probe = Canary(tokens=[[1, 2]], prompt_lengths=[1], before=[-2.0], after=[-1.0])
    patch = Patch.from_parts(
        entries=[LowRankEntry(site=SITE, u=np.ones((2, 1)), v=np.arange(3.0)[None])],
        method=MethodRef(name="rome", dist="editkit-rome", version="0.1.0"),
        base=BaseFingerprint(model="tiny", tensors={SITE.parameter: tensor}),
        edits=[EditRequest(prompt="The {} is", subject="x", target_new="y")],
        evidence=Evidence(module=SITE.module, keys=np.ones((1, 3))),
        canary=probe if canary else None,
        params={"lr": 0.5},
        contexts=("",),
        environment={},
        created="2000-01-01T00:00:00Z",
    )
    return b"".join(to_pieces(patch))


def split(content: bytes) -> tuple[Fields, bytes]:
    """Return a file's JSON header and its data."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Fields | str, data: bytes) -> bytes:
    """Return a file of a JSON header, or of any text in its place, and data."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def with_header(content: bytes, change: Callable[[Fields], object]) -> bytes:
    """Change the container's header."""
    header, data = split(content)
    change(header)
    return join(header, data)


def with_header_text(content: bytes, change: Callable[[str], str]) -> bytes:
    """Change the text of the container's header."""
    header, data = split(content)
    return join(change(json.dumps(header)), data)


def with_metadata(
    content: bytes, change: Callable[[Fields], object], *, seal: bool = True
) -> bytes:
    """Change the inner metadata; with ``seal`` also make all its digests right again."""
    header, data = split(content)
    fields = json.loads(header["__metadata__"][_KEY])
    change(fields)
    if seal:
        fields["content_digest"] = digests.content_digest(fields)
        fields["id"] = digests.patch_id(fields["content_digest"])
        fields["checksum"] = digests.checksum(fields)
    header["__metadata__"][_KEY] = rfc8785.dumps(fields).decode()
    return join(header, data)


def with_metadata_text(content: bytes, change: Callable[[str], str]) -> bytes:
    """Change the text of the inner metadata."""

    def both(header: Fields) -> None:
        header["__metadata__"][_KEY] = change(header["__metadata__"][_KEY])

    return with_header(content, both)


def with_array(
    content: bytes, name: str, change: Callable[[np.ndarray[Any, Any]], object]
) -> bytes:  # Any: element type and shape
    """Change a tensor's numbers in place, and make every digest right again."""
    header, data = split(content)
    start, stop = header[name]["data_offsets"]
    kind = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "I8": "|i1"}[header[name]["dtype"]]
    array = np.frombuffer(data[start:stop], kind).reshape(header[name]["shape"]).copy()
    change(array)
    changed = join(header, data[:start] + array.tobytes() + data[stop:])
    digest = digests.tensor_digest(name, array)
    return with_metadata(changed, lambda fields: fields["tensors"].update({name: digest}))


def with_tensor(content: bytes, name: str, array: np.ndarray[Any, Any], dtype: str) -> bytes:
    """Put a tensor of any dtype and shape in a file's end, in place of one of that name if any.

    Offsets and digests are all made right, so that only what the tensor is can be refused.
    """
    header, data = split(content)
    pieces = {
        other: (fields, data[slice(*fields["data_offsets"])])
        for other, fields in header.items()
        if other not in ("__metadata__", name)
    }
    pieces[name] = ({"dtype": dtype, "shape": list(array.shape)}, array.tobytes())
    made: Fields = {"__metadata__": header["__metadata__"]}
    whole = b""
    for other, (fields, raw) in pieces.items():
        made[other] = {**fields, "data_offsets": [len(whole), len(whole) + len(raw)]}
        whole += raw
    digest = digests.tensor_digest(name, np.ascontiguousarray(array))
    return with_metadata(join(made, whole), lambda f: f["tensors"].update({name: digest}))
