"""Which base a patch fits: the touched tensors as the checkpoint stores them.

The digest of a tensor is taken in the dtype of the checkpoint's files, so a patch computed on a
float32 load fits a bfloat16 load of the same files: a wider load is cast back, which is exact for
untouched weights; for a narrower one the files are read, and must give what is in memory. A weight
that accelerate offloaded is fetched; a quantised one is no tensor of the checkpoint any more, so
its files answer for it, once it is seen to be made from them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import attrs
import torch

from editkit_core.errors import BaseMismatchError, EditkitError, ModuleNotFoundInModelError
from editkit_core.models.holding import fetch, held_otherwise, is_subclass
from editkit_core.models.orientation import sides, to_out_in
from editkit_core.patch.bits import CONTAINER_DTYPES, TORCH_DTYPES, is_plain, same_bits, sha256
from editkit_core.patch.header import BaseFingerprint, TensorFingerprint
from editkit_core.patch.identity import config_digest, public_name, tokenizer_digest

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.patch.format import Patch


_QUANTISED_COSINE = 0.9  # int8 keeps 0.9999 of a weight and int4 0.99; another model's keeps 0
_NAME_THE_FILES = (
    "Name the folder of the unquantised checkpoint it was made from: EditableModel.wrap(model, "
    "tokenizer, folder=…)"
)


Digests = dict[tuple[str, str], str | None]


@attrs.frozen(kw_only=True)
class Mismatch:
    """A tensor that is not, or cannot be told to be, the one a patch was made for.

    Attributes:
        parameter: Its name.
        expected: What the patch needs.
        found: What the model has.
        unknown: Whether it cannot be told: quantised or offloaded, and no files to compare.
    """

    parameter: str
    expected: str
    found: str
    unknown: bool = False


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


def check_base(model: EditableModel, *patches: Patch) -> None:
    """Check that every tensor the patches change is the one they were made for.

    A tensor is hashed once, however many of them change it.

    Raises:
        BaseMismatchError: One is not, and the message names both digests of each; or it cannot be
            told, and the message says what to do.
    """
    digests: Digests = {}
    for patch in patches:
        wrong = mismatches(model, patch, digests)
        if wrong:
            raise _mismatch_error(model, patch, wrong)


def told(wrong: Sequence[Mismatch], what: str) -> str:
    """Return the first mismatches as text; ``what`` is what needs the weights."""
    rows = [f"{m.parameter}: {what} needs {m.expected}, found {m.found}" for m in wrong[:2]]
    more = [f"{len(wrong) - 2} more weights do not fit"] if len(wrong) > 2 else []
    return "; ".join([*rows, *more])


def _mismatch_error(
    model: EditableModel, patch: Patch, wrong: tuple[Mismatch, ...]
) -> BaseMismatchError:
    rows = told(wrong, "the patch")
    made_for = f"The patch {patch.header.id} was made for {patch.header.base.model!r}"
    if all(mismatch.unknown for mismatch in wrong):
        message = (
            f"{made_for}, and whether {model.name!r} is that model cannot be told. {rows}. "
            f"{_NAME_THE_FILES}; or leave the check out: apply_patch(…, check_base=False)."
        )
    else:
        message = (
            f"{made_for} and does not fit {model.name!r}. {rows}. Load the model it was made for, "
            "or make the edit again on this one."
        )
    return BaseMismatchError(
        message,
        patch=patch.header.id,
        made_for=patch.header.base.model,
        expected={m.parameter: m.expected for m in wrong},
        found={m.parameter: m.found for m in wrong},
    )


def mismatches(
    model: EditableModel, patch: Patch, digests: Digests | None = None
) -> tuple[Mismatch, ...]:
    """Return the tensors that are not the ones a patch was made for.

    Args:
        model: The model.
        patch: The patch.
        digests: Digests by name and dtype that are known already; new ones are added.
    """
    return base_mismatches(model, patch.header.base, digests)


def base_mismatches(
    model: EditableModel, base: BaseFingerprint, digests: Digests | None = None
) -> tuple[Mismatch, ...]:
    """Return the tensors of a model that are not those of a fingerprint; see `mismatches`."""
    known: Digests = {} if digests is None else digests
    compared = (_compare(model, name, tensor, known) for name, tensor in base.tensors.items())
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
        f"{name} of {model.name!r} is {held_otherwise(live)} and its safetensors files are not at "
        f"hand, so no patch can say what it fits. {_NAME_THE_FILES}, or load it unquantised.",
        parameter=name,
    )


def _compare(
    model: EditableModel, name: str, stated: TensorFingerprint, digests: Digests
) -> Mismatch | None:
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
    if (name, stated.dtype) not in digests:
        digests[name, stated.dtype] = _digest(model, name, live, stated.dtype)
    if digests[name, stated.dtype] == stated.sha256:
        return None
    told = _found(live, model, name)
    found = told or f"a weight that is {held_otherwise(live)}, and no files to compare"
    return Mismatch(parameter=name, expected=expected, found=found, unknown=told is None)


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
    if is_plain(live):
        return sha256(stored) if same_bits(stored.to(live.dtype), live.cpu()) else None
    return sha256(stored) if _may_be_made_from(stored, live) else None


def _may_be_made_from(stored: torch.Tensor, live: torch.Tensor) -> bool:
    """Say whether a quantised weight is about the stored one; True when that cannot be told."""
    if not is_subclass(live) or not hasattr(live, "dequantize"):
        return True
    wide = live.dequantize().flatten().float().cpu()
    cosine = torch.cosine_similarity(wide, stored.flatten().float(), dim=0)
    return wide.shape == (stored.numel(),) and cosine.item() >= _QUANTISED_COSINE


def _found(live: torch.Tensor, model: EditableModel, name: str) -> str | None:
    """Return what the model has, or None when nothing can tell."""
    try:
        dtype, digest = _as_stored(model, name, live)
    except BaseMismatchError:
        no_files = model.source is None or model.source.stored_name(name) is None
        return None if no_files else f"a weight that is {held_otherwise(live)}, of other files"
    return f"{dtype} {tuple(live.shape)} {digest}"


def _pristine(model: EditableModel, name: str) -> torch.Tensor:
    """Return a weight of the base, fetched where accelerate holds it."""
    snapshot = model.ledger.pristine(name)
    if snapshot is not None:
        return snapshot
    live = model.parameter(name).detach()
    owner, _, leaf = name.rpartition(".")
    held = fetch(model.module(owner), leaf) if live.is_meta else live
    return live if held is None else held


def _native_shape(module: torch.nn.Module) -> tuple[int, ...]:
    d_out, d_in = sides(module)
    return (d_out, d_in) if layout_of(module) == "out_in" else (d_in, d_out)
