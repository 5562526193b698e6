"""The files a model was loaded from: which tensors they hold, in which dtype, with which bytes."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import attrs
import torch

from editkit_core.errors import InputNotFoundError, PatchFormatError
from editkit_core.patch.bits import TORCH_DTYPES
from editkit_core.patch.container import (
    LENGTH_BYTES,
    MAX_LAYOUT_BYTES,
    Layout,
    Slot,
    parse_json,
    parse_layout,
)
from editkit_core.patch.header import TensorFingerprint

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PREFIXES = ("transformer.", "model.")  # a checkpoint of the bare body leaves them out


@attrs.frozen(kw_only=True)
class Shard:
    """One weights file.

    Attributes:
        path: The file.
        layout: Its header, parsed.
        data_start: Where the tensors' bytes begin.
    """

    path: Path
    layout: Layout
    data_start: int

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """Tensors by name."""
        return {slot.name: slot for slot in self.layout.slots}

    def read(self, slot: Slot) -> bytearray:
        """Return a tensor's bytes."""
        with self.path.open("rb") as file:
            file.seek(self.data_start + slot.start)
            data = bytearray(slot.stop - slot.start)
            if file.readinto(data) != len(data):
                raise InputNotFoundError(
                    f"{self.path} ends within {slot.name}: it is truncated. Get it again.",
                    path=str(self.path),
                )
        return data


class CheckpointSource:
    """A checkpoint folder with ``model.safetensors``, whole or sharded.

    Making one reads nothing; files are read when first asked for. A folder without safetensors
    files is allowed and has no tensors.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._shards: dict[str, Shard] = {}

    @property
    def files(self) -> frozenset[str]:
        """Names of the files that the weights are loaded from, with the index if there is one."""
        index = {INDEX} if (self.folder / INDEX).is_file() else set()
        return frozenset(self._files.values()) | index

    def stored_name(self, parameter: str) -> str | None:
        """Return what the files call a parameter of the model, or None when they lack it."""
        candidates = [parameter]
        for prefix in _PREFIXES:
            candidates += [parameter.removeprefix(prefix), prefix + parameter]
        return next((name for name in candidates if name in self._files), None)

    def locate(self, parameter: str) -> tuple[Shard, Slot]:
        """Return the shard and the place of a parameter.

        Raises:
            InputNotFoundError: The files do not hold it.
            PatchFormatError: A weights file is malformed.
        """
        name = self.stored_name(parameter)
        if name is None:
            raise InputNotFoundError(
                f"The weights in {self.folder} do not hold {parameter}. Give the folder of the "
                "model that the patch was made for, saved as safetensors.",
                path=str(self.folder),
                parameter=parameter,
            )
        shard = self.shard(self._files[name])
        if name not in shard.slots:
            raise InputNotFoundError(
                f"{shard.path} does not hold {name}, though {INDEX} says so. Get the checkpoint "
                "again from its source.",
                path=str(shard.path),
            )
        return shard, shard.slots[name]

    def dtype(self, parameter: str) -> str | None:
        """Return the stored dtype of a parameter, for example ``F16``, or None."""
        return self.locate(parameter)[1].dtype if self.stored_name(parameter) else None

    def tensor(self, parameter: str) -> torch.Tensor:
        """Return a parameter as stored, on the CPU."""
        shard, slot = self.locate(parameter)
        if slot.dtype not in TORCH_DTYPES:
            raise PatchFormatError(
                f"{shard.path}: {slot.name} is stored as {slot.dtype}; editkit changes "
                f"{', '.join(sorted(TORCH_DTYPES))} only. Use an unquantised checkpoint.",
                where=slot.name,
            )
        data = torch.frombuffer(shard.read(slot), dtype=TORCH_DTYPES[slot.dtype])
        return data.reshape(slot.shape)

    def tensor_fingerprint(self, parameter: str, layout: str = "out_in") -> TensorFingerprint:
        """Return shape, dtype and digest of a parameter as stored."""
        shard, slot = self.locate(parameter)
        digest = hashlib.sha256(shard.read(slot)).hexdigest()
        return TensorFingerprint(shape=slot.shape, dtype=slot.dtype, sha256=digest, layout=layout)

    def shard(self, file: str) -> Shard:
        """Return a weights file's header, read once.

        Raises:
            InputNotFoundError: It cannot be read.
            PatchFormatError: It is malformed.
        """
        if file not in self._shards:
            self._shards[file] = read_shard(self.folder / file)
        return self._shards[file]

    @cached_property
    def _files(self) -> dict[str, str]:
        """The weights file of every stored tensor."""
        if (self.folder / INDEX).is_file():
            return _index(self.folder / INDEX)
        if (self.folder / WEIGHTS).is_file():
            return dict.fromkeys(self.shard(WEIGHTS).slots, WEIGHTS)
        return {}


def read_shard(path: Path) -> Shard:
    """Read a weights file's header.

    Raises:
        InputNotFoundError: It cannot be read.
        PatchFormatError: It is malformed.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            room = path.stat().st_size - LENGTH_BYTES
            if not 0 < length <= min(room, MAX_LAYOUT_BYTES):
                raise PatchFormatError(
                    f"{path} is not a safetensors file. Get the checkpoint again.", where="length"
                )
            layout = parse_layout(file.read(length), str(path))
    except OSError as error:
        raise InputNotFoundError(
            f"Cannot read the weights {path}: {error.strerror or error}.", path=str(path)
        ) from error
    if layout.data_bytes != room - length:
        raise PatchFormatError(
            f"{path} holds {room - length} bytes of tensors, its header announces "
            f"{layout.data_bytes}: it is truncated or damaged. Get it again.",
            where="data",
        )
    return Shard(path=path, layout=layout, data_start=LENGTH_BYTES + length)


def _index(path: Path) -> dict[str, str]:
    content = parse_json(path.read_bytes(), str(path))
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and file == Path(file).name for file in files.values()
    ):
        raise PatchFormatError(
            f"{path} must map tensor names to files of its own folder. Get it again.", where=INDEX
        )
    return files
