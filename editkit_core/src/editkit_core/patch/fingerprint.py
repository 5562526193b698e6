"""Which base a patch fits: the touched tensors as the checkpoint stores them.

The digest of a tensor is taken in the dtype of the checkpoint's files, so a patch computed on a
float32 load fits a bfloat16 load of the same files: a wider load is cast back, which is exact for
untouched weights; for a narrower one the files are read, and must give what is in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import attrs
import torch

from editkit_core.errors import BaseMismatchError, EditkitError, ModuleNotFoundInModelError
from editkit_core.models.orientation import sides, to_out_in
from editkit_core.patch.bits import CONTAINER_DTYPES, TORCH_DTYPES, is_plain, same_bits, sha256
from editkit_core.patch.header import BaseFingerprint, TensorFingerprint
from editkit_core.patch.identity import config_digest, public_name, tokenizer_digest

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch


@attrs.frozen(kw_only=True)
class Mismatch:
    """A tensor that is not the one a patch was made for.

    Attributes:
        parameter: Its name.
        expected: What the patch needs.
        found: What the model has.
    """

    parameter: str
    expected: str
    found: str


def base_fingerprint(model: EditableModel, parameters: Iterable[str]) -> BaseFingerprint:
    """Fingerprint a model for a patch that changes ``parameters``.

    Patches applied meanwhile do not count: the fingerprint is of the pristine base.

    Args:
        model: The model.
        parameters: Names of the weights the patch changes.

    Raises:
        ModuleNotFoundInModelError: The model has no such parameter.
        UnsupportedModuleError: It is not the weight of a projection.
        BaseMismatchError: A weight is offloaded or quantised and its files are not at hand.
    """
    return BaseFingerprint(
        model=public_name(model.name),
        revision=getattr(model.model.config, "_commit_hash", None),
        config_digest=config_digest(model.model.config),
        tokenizer_digest=tokenizer_digest(model.tokenizer),
        tied=tied_groups(model.model),
        tensors={name: _fingerprint(model, name) for name in sorted(set(parameters))},
    )


def check_base(model: EditableModel, patch: Patch) -> None:
    """Check that every tensor the patch changes is the one it was made for.

    Raises:
        BaseMismatchError: One is not; the message names both digests of each.
    """
    wrong = mismatches(model, patch)
    if wrong:
        rows = "; ".join(
            f"{m.parameter}: the patch needs {m.expected}, found {m.found}" for m in wrong
        )
        raise BaseMismatchError(
            f"The patch {patch.header.id} was made for {patch.header.base.model!r} and does not "
            f"fit {model.name!r}. {rows}. Load the model it was made for, or make the edit again "
            "on this one.",
            patch=patch.header.id,
            made_for=patch.header.base.model,
            expected={m.parameter: m.expected for m in wrong},
            found={m.parameter: m.found for m in wrong},
        )


def mismatches(model: EditableModel, patch: Patch) -> tuple[Mismatch, ...]:
    """Return the tensors that are not the ones a patch was made for."""
    compared = (_compare(model, name, stated) for name, stated in patch.header.base.tensors.items())
    return tuple(mismatch for mismatch in compared if mismatch is not None)


def tied_groups(module: torch.nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the groups of parameter names that share one tensor."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return tuple(sorted(tuple(sorted(group)) for group in names.values() if len(group) > 1))


def layout_of(module: torch.nn.Module) -> str:
    """Return ``out_in`` or ``in_out`` by the module's type."""
    probe = torch.empty(2, 1, device="meta")
    return "out_in" if to_out_in(module, probe).shape == probe.shape else "in_out"


def _fingerprint(model: EditableModel, name: str) -> TensorFingerprint:
    live = _pristine(model, name)
    module = model.module(name.rpartition(".")[0])
    dtype, digest = _as_stored(model, name, live)
    norm = None
    if is_plain(live):
        norm = float(f"{torch.linalg.vector_norm(live, dtype=torch.float64).item():.6g}")
    return TensorFingerprint(
        shape=_native_shape(module), dtype=dtype, sha256=digest, layout=layout_of(module), norm=norm
    )


def _as_stored(model: EditableModel, name: str, live: torch.Tensor) -> tuple[str, str]:
    """Return dtype and digest in the files' dtype; of a weight that left the files, in its own."""
    stored = model.source.dtype(name) if model.source else None
    for dtype in (stored, CONTAINER_DTYPES.get(live.dtype)):
        digest = None if dtype is None else _digest(model, name, live, dtype)
        if dtype is not None and digest is not None:
            return dtype, digest
    raise BaseMismatchError(
        f"{name} of {model.name!r} is offloaded or quantised ({live.dtype}) and its safetensors "
        "files are not at hand, so no patch can say what it fits. Load the model unquantised.",
        parameter=name,
    )


def _compare(model: EditableModel, name: str, stated: TensorFingerprint) -> Mismatch | None:
    expected = f"{stated.dtype} {stated.shape} {stated.sha256}"
    try:
        live = _pristine(model, name)
        module = model.module(name.rpartition(".")[0])
        shape, layout = _native_shape(module), layout_of(module)
    except EditkitError as error:
        what = "no such weight" if isinstance(error, ModuleNotFoundInModelError) else error.message
        return Mismatch(parameter=name, expected=expected, found=what)
    if shape != stated.shape or layout != stated.layout:
        found = f"{shape} stored {layout}"
        return Mismatch(parameter=name, expected=f"{expected} stored {stated.layout}", found=found)
    if _digest(model, name, live, stated.dtype) == stated.sha256:
        return None
    return Mismatch(parameter=name, expected=expected, found=_found(live, model, name))


def _digest(model: EditableModel, name: str, live: torch.Tensor, dtype: str) -> str | None:
    """Return the digest of a weight in ``dtype``, or None when it has no exact form there."""
    wanted = TORCH_DTYPES.get(dtype)
    if wanted is None:
        return None
    if is_plain(live) and live.dtype == wanted:
        return sha256(live)
    if is_plain(live) and torch.promote_types(live.dtype, wanted) == live.dtype:
        back = live.to(wanted)
        return sha256(back) if same_bits(back.to(live.dtype), live) else None
    if model.source is None or model.source.dtype(name) != dtype:
        return None
    stored = model.source.tensor(name)
    if is_plain(live) and not same_bits(stored.to(live.dtype), live.cpu()):
        return None
    return sha256(stored)


def _found(live: torch.Tensor, model: EditableModel, name: str) -> str:
    try:
        dtype, digest = _as_stored(model, name, live)
    except BaseMismatchError:
        return f"a weight that is offloaded or quantised ({live.dtype}), and no files to compare"
    return f"{dtype} {tuple(live.shape)} {digest}"


def _pristine(model: EditableModel, name: str) -> torch.Tensor:
    snapshot = model.ledger.pristine(name)
    return model.parameter(name).detach() if snapshot is None else snapshot


def _native_shape(module: torch.nn.Module) -> tuple[int, ...]:
    d_out, d_in = sides(module)
    return (d_out, d_in) if layout_of(module) == "out_in" else (d_in, d_out)
