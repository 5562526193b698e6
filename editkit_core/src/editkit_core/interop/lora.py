"""Write patches as a PEFT adapter: a folder with a configuration and a safetensors file.

PEFT computes y = W x + (alpha / r) B A x. With one uniform rank r and alpha = r the factor is 1;
modules of smaller rank are padded with zeros. U is B and V is A, whatever the layout of W: PEFT's
``fan_in_fan_out`` is about W alone. Neither torch nor peft is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editkit_core.atomic import new_folder, write_file
from editkit_core.errors import ExportError, OutputExistsError
from editkit_core.interop.exported import Exported, uniform_rank
from editkit_core.interop.factors import ModuleFactors, Scaled, module_factors
from editkit_core.models.families import BUILTIN_FAMILIES
from editkit_core.patch.container import RawTensor, encode
from editkit_core.patch.kinds.arrays import Float32Array

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_LAYOUTS = ("in_out", "out_in")


def export_lora(
    patches: Sequence[Scaled],
    folder: str | Path,
    *,
    lossy_rank: int | None = None,
    factors: tuple[ModuleFactors, ...] | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Exported:
    """Write patches of one base as one PEFT adapter.

    Args:
        patches: The patches, with the factor on each, which is baked in.
        folder: The folder to make.
        lossy_rank: Rank to truncate full matrices to; None refuses them.
        factors: What :func:`module_factors` made of the patches, to save doing it again.
        force: Replace an existing adapter folder.
        dry_run: Check everything and write nothing.

    Raises:
        ExportError: A patch cannot be expressed as a LoRA; the message says why.
        InvalidParameterError: There are no patches.
        StackConflictError: A patch is given twice, or excludes another.
        BaseMismatchError: The patches are for different bases.
        OutputExistsError: The folder exists.
        WriteFailedError: Writing failed; nothing was left.
    """
    out = Path(folder)
    _check_out(out, force)
    if factors is None:
        factors = module_factors(patches, lossy_rank=lossy_rank)
    config = json.dumps(_config(patches, factors), indent=2, sort_keys=True).encode() + b"\n"
    weights = encode(_provenance(patches), _tensors(factors))
    size = len(config) + sum(map(len, weights))
    if not dry_run:
        with new_folder(out, replace=force) as made:
            write_file(made / CONFIG, [config])
            write_file(made / WEIGHTS, weights)
    return Exported(
        path=out,
        patches=tuple(sorted(patch.header.id for patch, _ in patches)),
        factors=factors,
        nbytes=size,
        dry_run=dry_run,
    )


def _check_out(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise OutputExistsError(
            f"{out} exists already. Choose another name or pass --force to replace it.",
            path=str(out),
        )
    if not (out / CONFIG).is_file():
        raise OutputExistsError(
            f"{out} holds something else than an adapter, so even --force does not replace it. "
            "Choose another name, or remove it yourself.",
            path=str(out),
        )


def _config(
    patches: Sequence[Scaled], factors: Sequence[ModuleFactors]
) -> dict[str, Any]:  # Any: JSON values
    base = patches[0][0].header.base
    rank = uniform_rank(factors)
    return {
        "peft_type": "LORA",
        "task_type": _task_type(factors),
        "base_model_name_or_path": base.model,
        "revision": base.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": _fan_in_fan_out(factors),
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": [made.site.module for made in factors],
    }


def _task_type(factors: Sequence[ModuleFactors]) -> str:
    """Say which of PEFT's model classes fits: a module's path tells an encoder-decoder."""
    answering = [family for family in BUILTIN_FAMILIES if family.is_encoder_decoder]
    paired = any(family.stack_of(made.site.module) for family in answering for made in factors)
    return "SEQ_2_SEQ_LM" if paired else "CAUSAL_LM"


def _fan_in_fan_out(factors: Sequence[ModuleFactors]) -> bool:
    """Say whether the weights are stored (d_in, d_out), as GPT-2's Conv1D stores them."""
    found = {made.layout for made in factors}
    if len(found) > 1:
        first = [next(m.site.module for m in factors if m.layout == layout) for layout in _LAYOUTS]
        raise ExportError(
            f"{first[0]} is a Conv1D and {first[1]} a Linear; PEFT's fan_in_fan_out holds for all "
            "modules of an adapter. Export their patches one by one, or to a checkpoint.",
            modules=tuple(first),
        )
    return found == {"in_out"}


def _tensors(factors: Sequence[ModuleFactors]) -> dict[str, RawTensor]:
    rank, tensors = uniform_rank(factors), {}
    for made in factors:
        u, v = made.padded(rank)
        tensors[f"{PREFIX}{made.site.module}.lora_A.weight"] = _raw(v)
        tensors[f"{PREFIX}{made.site.module}.lora_B.weight"] = _raw(u)
    return tensors


def _raw(array: Float32Array) -> RawTensor:
    return RawTensor(dtype="F32", shape=array.shape, data=array.astype("<f4").tobytes())


def _provenance(patches: Sequence[Scaled]) -> Mapping[str, str]:
    """Return the container's metadata: what PEFT expects, and which patches are inside."""
    inside = [
        {"id": patch.header.id, "content_digest": patch.header.content_digest, "scale": scale}
        for patch, scale in sorted(patches, key=lambda item: item[0].header.id)
    ]
    return {"format": "pt", "editkit.patches": json.dumps(inside, sort_keys=True)}
