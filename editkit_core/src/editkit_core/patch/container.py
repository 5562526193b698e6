"""The safetensors container, read and written by hand: 8-byte length, JSON header, data.

Used for patch files, which :mod:`editkit_core.patch.io` reads with further rules, and for the
layout of checkpoint shards. Nothing here imports torch. Every refusal is a
``PatchFormatError`` that says where; no memory is taken for a tensor before its size was
compared with the file's.

Byte layout: the header is padded with spaces to a multiple of 8, tensors follow without gaps, wide
dtypes first and then by name, as the official library writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from editkit_core.errors import PatchFormatError

LENGTH_BYTES = 8
MAX_LAYOUT_BYTES = 100 * 1024 * 1024  # the official library's own bound
ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_MAX_DIMENSIONS = 16
_MAX_SIZE = 2**53


@attrs.frozen(kw_only=True)
class RawTensor:
    """A tensor as the container sees it.

    Attributes:
        dtype: Container name of the element type, for example ``F32``.
        shape: Sizes.
        data: Little-endian bytes in row-major order.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@attrs.frozen(kw_only=True)
class Slot:
    """Where a tensor lies in a file.

    Attributes:
        name: Tensor name.
        dtype: Container name of the element type.
        shape: Sizes.
        start: First byte, counted from the start of the data.
        stop: One past the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@attrs.frozen(kw_only=True)
class Layout:
    """A parsed header.

    Attributes:
        metadata: The free text values, by key.
        slots: Tensors in the order of their bytes.
        data_bytes: Length of the data.
    """

    metadata: Mapping[str, str]
    slots: tuple[Slot, ...]
    data_bytes: int


def encode(metadata: Mapping[str, str], tensors: Mapping[str, RawTensor]) -> list[bytes]:
    """Return the file as pieces to be written one after another."""
    names = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + len(tensor.data)
        header[name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    length = len(text).to_bytes(LENGTH_BYTES, "little")
    return [length, text, *(bytes(tensors[name].data) for name in names)]


def parse_layout(header: bytes, where: str, *, max_tensors: int | None = None) -> Layout:
    """Parse the JSON header of a container.

    Args:
        header: The bytes after the length.
        where: What is being read, for messages.
        max_tensors: How many tensors to accept.

    Raises:
        PatchFormatError: It is not such a header, or lists too many tensors.
    """
    fields = parse_json(header, f"{where}, header")
    if not isinstance(fields, dict):
        raise refusal(where, "header", f"must be an object, got {type(fields).__name__}")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise refusal(where, "__metadata__", "must hold texts only")
    if max_tensors is not None and len(fields) > max_tensors:
        raise refusal(where, "header", f"lists {len(fields)} tensors, at most {max_tensors} fit")
    slots = sorted((_slot(n, f, where) for n, f in fields.items()), key=lambda s: (s.start, s.stop))
    return Layout(metadata=metadata, slots=tuple(slots), data_bytes=_contiguous(slots, where))


def parse_json(text: bytes, where: str) -> Any:  # Any: JSON values
    """Parse JSON; duplicate keys, NaN, bad UTF-8 and absurd nesting are refused.

    Whole numbers beyond 2**53 are read as floats, which is what RFC 8785 makes of them.
    """
    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_bounded_int,
        )
    except RecursionError:
        raise PatchFormatError(f"{where}: nested too deeply to be read.", where=where) from None
    except ValueError as error:  # also JSONDecodeError and UnicodeDecodeError
        raise PatchFormatError(
            f"{where}: not the JSON it should be ({error}). The file is damaged or was not written "
            "by editkit; get it again from its source.",
            where=where,
        ) from None


def refusal(where: str, part: str, what: str) -> PatchFormatError:
    """Return the error for one part of a file."""
    return PatchFormatError(
        f"{where}: {part} {what}. The file is damaged or was not written by editkit; get it again "
        "from its source.",
        where=part,
        path=where,
    )


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON values
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # set.add returns None on purpose
        raise ValueError(f"the key {shorten(twice)} occurs twice")
    return made


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _bounded_int(text: str) -> int | float:
    number = int(text)
    return number if abs(number) < _MAX_SIZE else float(text)


def shorten(text: str) -> str:
    """Return a printable form of a name that may be hostile."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def _slot(name: str, fields: Any, where: str) -> Slot:  # Any: JSON values
    part = f"tensor {shorten(name)}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise refusal(where, part, "must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise refusal(where, part, f"has the unknown dtype {shorten(str(dtype))}")
    if not _whole_numbers(shape) or len(shape) > _MAX_DIMENSIONS:
        raise refusal(where, part, f"has the impossible shape {shorten(str(shape))}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise refusal(where, part, f"has the impossible offsets {shorten(str(offsets))}")
    size = ITEM_BYTES[dtype]
    for side in shape:
        size *= side
    if offsets[1] - offsets[0] != size:
        raise refusal(
            where, part, f"needs {size} bytes for {dtype} {shape}, its offsets {offsets} give "
            f"{offsets[1] - offsets[0]}",
        )  # fmt: skip
    return Slot(name=name, dtype=dtype, shape=tuple(shape), start=offsets[0], stop=offsets[1])


def _whole_numbers(value: Any) -> bool:  # Any: JSON values
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _contiguous(slots: Sequence[Slot], where: str) -> int:
    end = 0
    for slot in slots:
        if slot.start != end:
            gap = "leaves a gap before" if slot.start > end else "overlaps the tensor before"
            raise refusal(where, f"tensor {shorten(slot.name)}", f"{gap} byte {slot.start}")
        end = slot.stop
    return end
