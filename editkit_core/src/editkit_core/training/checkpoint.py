"""Checkpoints of a training run: one file that holds all there is to go on, written atomically.

It is a safetensors file without anything executable: the learner's weights and buffers, the
optimiser's state, the best weights so far, and the counters as JSON with a digest over everything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import cattrs.errors
import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_bytes
from torch import Tensor

from editkit_core.atomic import write_file
from editkit_core.errors import CheckpointError, InputNotFoundError, PatchFormatError
from editkit_core.params import converter
from editkit_core.patch.bits import as_bytes
from editkit_core.patch.container import parse_json

__all__ = ["Checkpoint", "Counters", "read", "write"]

FILE_NAME = "checkpoint.safetensors"
_METADATA = "editkit_checkpoint"
_FORMAT = 1
_WEIGHTS, _BEST, _OPTIMIZER = "weights.", "best.", "optimizer."
Tensors = Mapping[str, Tensor]


@attrs.define(kw_only=True)
class Counters:
    """How far a run is.

    Attributes:
        step: Updates done.
        seconds: Wall-clock seconds so far, all starts together.
        validated: The update after which was validated last; -1 before the first time.
        stale: Validations since the best score.
        best_step: The update that the best weights are from; -1 without validation.
        best: Their scores.
    """

    step: int = 0
    seconds: float = 0.0
    validated: int = -1
    stale: int = 0
    best_step: int = -1
    best: Mapping[str, float] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Checkpoint:
    """A run at the end of an update.

    Attributes:
        run: What the run depends on, as plain JSON values; it must be the same to go on.
        counters: How far it is.
        weights: The learner's state dict.
        best: The state dict with the best validation, empty without one.
        optimizer: The optimiser's state by the number of the parameter.
    """

    run: Mapping[str, Any]  # Any: JSON values
    counters: Counters
    weights: Tensors = attrs.field(repr=False)
    best: Tensors = attrs.field(repr=False)
    optimizer: Mapping[int, Mapping[str, Any]] = attrs.field(repr=False)
    # Any: tensors and numbers, as the optimiser keeps them


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of an older one.

    Raises:
        WriteFailedError: It cannot be written; the older one is still there.
    """
    tensors = {name: _apart(tensor) for name, tensor in _named(checkpoint)}
    plain = {
        f"{number}.{name}": value
        for number, state in checkpoint.optimizer.items()
        for name, value in state.items()
        if not isinstance(value, Tensor)
    }
    fields = {
        "format": _FORMAT,
        "run": checkpoint.run,
        "counters": attrs.asdict(checkpoint.counters),
        "optimizer": plain,
    }
    fields = json.loads(json.dumps(fields))  # as a reader will see them
    text = json.dumps({**fields, "digest": _digest(fields, tensors)}, ensure_ascii=False)
    write_file(path, [tensors_bytes(tensors, metadata={_METADATA: text})], force=True)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint strictly.

    Raises:
        InputNotFoundError: It cannot be read.
        CheckpointError: It is damaged, of another format, or no checkpoint.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputNotFoundError(
            f"Cannot read the checkpoint {path}: {error.strerror or error}. Check the path.",
            path=str(path),
        ) from error
    try:
        return _parse(data)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        PatchFormatError,
        SafetensorError,
        cattrs.errors.BaseValidationError,
    ) as error:
        reason = error.message if isinstance(error, PatchFormatError) else str(error)
        raise CheckpointError(
            f"{path} cannot be used as a training checkpoint: {reason}. Train again in another "
            "folder, or start this one again with --fresh.",
            path=str(path),
        ) from error


def _parse(data: bytes) -> Checkpoint:
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= len(data) - 8:
        raise ValueError(f"its first 8 bytes announce a header of {length}")
    outer = parse_json(data[8 : 8 + length], "header")
    fields = parse_json(outer["__metadata__"][_METADATA].encode(), "metadata")
    if fields.get("format") != _FORMAT:
        raise ValueError(f"it has format {fields.get('format')!r}, this version reads {_FORMAT}")
    tensors = read_tensors(data)
    stated = fields.pop("digest")
    found = _digest(fields, tensors)
    if stated != found:
        raise ValueError(f"its content has the digest {found}, it says {stated}")
    state: dict[int, dict[str, Any]] = {}  # Any: tensors and numbers
    mixed: dict[str, Any] = {**fields["optimizer"], **_under(tensors, _OPTIMIZER)}
    for key, value in mixed.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    return Checkpoint(
        run=fields["run"],
        counters=converter().structure(fields["counters"], Counters),
        weights=_under(tensors, _WEIGHTS),
        best=_under(tensors, _BEST),
        optimizer=state,
    )


def _named(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    yield from ((_WEIGHTS + name, tensor) for name, tensor in checkpoint.weights.items())
    yield from ((_BEST + name, tensor) for name, tensor in checkpoint.best.items())
    for number, state in checkpoint.optimizer.items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                yield f"{_OPTIMIZER}{number}.{name}", value


def _apart(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU that shares its memory with no other tensor."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _under(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _digest(fields: Mapping[str, Any], tensors: Tensors) -> str:  # Any: JSON values
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(as_bytes(tensor))
    return digest.hexdigest()
