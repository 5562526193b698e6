"""A PEFT adapter folder, read strictly: ``adapter_model.safetensors`` only, never a pickle."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np

from editkit_core.errors import ExportError, InputNotFoundError, PatchFormatError
from editkit_core.interop.adapter_config import AdapterConfig, read_config
from editkit_core.interop.lora import CONFIG, PREFIX, WEIGHTS
from editkit_core.patch.container import (
    ITEM_BYTES,
    LENGTH_BYTES,
    Layout,
    Slot,
    parse_layout,
    refusal,
    shorten,
)
from editkit_core.patch.factored import Float64Array
from editkit_core.patch.strict import MAX_HEADER_BYTES, not_safetensors

PICKLE = "adapter_model.bin"
_MOST_TENSORS = 16384
_NAME = re.compile(r"(?P<module>[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.lora_(?P<side>[AB])\.weight")
_WHOLE = "it replaces whole modules besides its low-rank changes"
_OTHERS = {
    "lora_embedding_": "it changes an embedding, which is no projection",
    "lora_magnitude_vector": "it is a DoRA, which also rescales the rows of the weight",
    "lora_B.bias": "it adds a bias, and a patch changes weights only",
    "token_adapter": "it changes token embeddings",
    "modules_to_save": _WHOLE,
    "base_layer": _WHOLE,
    "embed_tokens.weight": _WHOLE,  # saved along when tokens were added
    "lm_head.weight": _WHOLE,
}


@attrs.frozen(kw_only=True, eq=False)
class Product:
    """The change of one module.

    Attributes:
        u: B times the adapter's factor (d_out, r), float64.
        v: A (r, d_in), float64.
    """

    u: Float64Array
    v: Float64Array


@attrs.frozen(kw_only=True, eq=False)
class Adapter:
    """A LoRA adapter.

    Attributes:
        config: What its settings say.
        sha256: Digest of the weights file.
        modules: The changes by module path, in the order of the paths.
    """

    config: AdapterConfig
    sha256: str
    modules: Mapping[str, Product]


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter folder.

    Factors of zeros only, which padding leaves, are dropped, and so are modules of such alone.

    Raises:
        InputNotFoundError: A file is missing or cannot be read.
        PatchFormatError: A file is malformed.
        ExportError: The adapter is something that a patch cannot express; the message says what.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file() and (folder / PICKLE).exists():
        raise ExportError(
            f"{folder} has its weights in {PICKLE}, a Python pickle, which can run any code when "
            "it is read; editkit never reads one. Load the adapter with peft where you trust it "
            "and save it again: it is written as safetensors.",
            path=str(folder),
        )
    arrays, digest = _read_arrays(path)
    products = {name: _product(path, name, sides, config) for name, sides in arrays.items()}
    found = {name: kept for name in sorted(products) if (kept := products[name]) is not None}
    if not found:
        raise ExportError(
            f"{folder} changes nothing: every product in it is zero. Was it ever trained?",
            path=str(folder),
        )
    return Adapter(config=config, sha256=digest, modules=found)


def _read_arrays(path: Path) -> tuple[dict[str, dict[str, Float64Array]], str]:
    """Return A and B by module, and the digest of the bytes they were read from."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputNotFoundError(
            f"Cannot read {path}: {error.strerror or error}. Give the folder of a PEFT adapter.",
            path=str(path),
        ) from error
    layout, start = _layout(data, str(path))
    arrays: dict[str, dict[str, Float64Array]] = {}
    for slot in layout.slots:
        module, side = _parse_name(path, slot.name)
        array = _array(path, slot, memoryview(data)[start:])
        if side in arrays.setdefault(module, {}):
            raise refusal(str(path), f"tensor {shorten(slot.name)}", "is there twice")
        arrays[module][side] = array
    return arrays, hashlib.sha256(data).hexdigest()


def _layout(data: bytes, where: str) -> tuple[Layout, int]:
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES or length > len(data) - LENGTH_BYTES:
        error = not_safetensors(data[:LENGTH_BYTES], length, len(data), where)
        error.message = error.message.replace("a patch file", "an adapter", 1)
        raise error
    if length > MAX_HEADER_BYTES:
        raise refusal(where, "header", f"takes {length} bytes, at most {MAX_HEADER_BYTES} fit")
    start = LENGTH_BYTES + length
    layout = parse_layout(data[LENGTH_BYTES:start], where, max_tensors=_MOST_TENSORS)
    if layout.data_bytes != len(data) - start:
        raise refusal(
            where, "data", f"takes {len(data) - start} bytes, the header announces "
            f"{layout.data_bytes}",
        )  # fmt: skip
    return layout, start


def _parse_name(path: Path, name: str) -> tuple[str, str]:
    for part, why in _OTHERS.items():
        if part in name:
            raise ExportError(
                f"{path.parent} cannot be expressed as a patch: {why} ({shorten(name)}).",
                path=str(path.parent),
                tensor=name,
            )
    found = _NAME.fullmatch(name.removeprefix(PREFIX))
    if found is None or not name.startswith(PREFIX) or len(name) > 400:
        raise refusal(str(path), f"tensor {shorten(name)}", "has a name no LoRA of PEFT uses")
    return found["module"], found["side"]


def _array(path: Path, slot: Slot, data: memoryview) -> Float64Array:
    part = f"tensor {shorten(slot.name)}"
    if len(slot.shape) == 4:
        raise ExportError(
            f"{path.parent} cannot be expressed as a patch: {part} changes a convolution.",
            path=str(path.parent),
        )
    if len(slot.shape) != 2 or 0 in slot.shape:
        raise refusal(str(path), part, f"has the shape {list(slot.shape)}, not two sides")
    raw = data[slot.start : slot.stop]
    if slot.dtype == "BF16":  # the upper half of a float32
        values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    elif slot.dtype in ("F16", "F32", "F64"):
        values = np.frombuffer(raw, f"<f{ITEM_BYTES[slot.dtype]}")
    else:
        raise refusal(str(path), part, f"has the dtype {slot.dtype}")
    array = np.asarray(values.reshape(slot.shape), dtype=np.float64)
    if not np.isfinite(array).all():
        raise refusal(str(path), part, "holds a number that is not finite")
    return array


def _product(
    path: Path, module: str, sides: Mapping[str, Float64Array], config: AdapterConfig
) -> Product | None:
    part = f"module {shorten(module)}"
    if set(sides) != {"A", "B"}:
        missing = "B" if "A" in sides else "A"
        raise refusal(str(path), part, f"has no lora_{missing}")
    a, b = sides["A"], sides["B"]
    rank = config.rank_of(module)
    if a.shape[0] != rank or b.shape[1] != rank:
        raise PatchFormatError(
            f"{path}: {part} has A {a.shape} and B {b.shape}, but {CONFIG} gives it the rank "
            f"{rank}. The two files do not belong together; get the adapter again.",
            where=module,
            expected=rank,
        )
    kept = a.any(axis=1) & b.any(axis=0)
    if not kept.any():
        return None
    return Product(u=b[:, kept] * config.factor(module), v=a[kept])
