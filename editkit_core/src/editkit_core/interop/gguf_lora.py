"""Write patches as a llama.cpp LoRA adapter: one GGUF file.

llama.cpp computes y = W x + scale (alpha / r) B A x, with r read off B; alpha = r makes the factor
the ``--lora-scaled`` one. Names of tensors come from the ``gguf`` package. llama.cpp turns the rows
of LLaMA's query and key weights when it converts a checkpoint, so their factors are turned too.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from editkit_core.atomic import write_file
from editkit_core.errors import (
    ExportError,
    InputNotFoundError,
    MissingExtraError,
    OutputExistsError,
    WriteFailedError,
)
from editkit_core.interop.exported import Exported, uniform_rank
from editkit_core.interop.factors import ModuleFactors, Scaled, module_factors
from editkit_core.patch.container import parse_json
from editkit_core.patch.kinds.arrays import Float32Array

# llama.cpp's converter gives these model types another name than their own
_RENAMED = {"mistral": "llama", "gpt_neox": "gptneox", "phi": "phi2", "cohere": "command-r"}
_NOT_RUN = frozenset({"gptj"})  # named by the gguf package, but llama.cpp cannot load such a model
_ANSWERING = frozenset({"t5", "mt5", "umt5"})  # adapters of encoder-decoders are not checked
_WHOLE_BLOCK = frozenset({"gpt2", "llama", "qwen2", "qwen3"})  # attention is checked, too
_TURNED = frozenset({"llama"})  # architectures whose query and key rows the converter turns
_FEED_FORWARD = re.compile(r"blk\.\d+\.ffn_(down|gate|up)")
_QUERY_OR_KEY = re.compile(r"blk\.\d+\.attn_(?P<which>[qk])")
_LAYER = re.compile(r"\.(\d+)\.")


@attrs.frozen(kw_only=True)
class GgufTarget:
    """The kind of GGUF model an adapter is for.

    Attributes:
        architecture: llama.cpp's name of it, for example ``llama``.
        n_heads: Number of query heads, if known; needed for LLaMA's query weights.
        n_key_heads: Number of key heads, if known; needed for LLaMA's key weights.
    """

    architecture: str
    n_heads: int | None = None
    n_key_heads: int | None = None

    @classmethod
    def of_folder(cls, folder: str | Path) -> GgufTarget:
        """Return the target of a Hugging Face checkpoint, from its ``config.json``.

        Raises:
            InputNotFoundError: The folder has none.
            PatchFormatError: It is no JSON object.
            ExportError: It names no model type.
        """
        path = Path(folder) / "config.json"
        try:
            config = parse_json(path.read_bytes(), str(path))
        except OSError as error:
            raise InputNotFoundError(
                f"Cannot read {path}: {error.strerror or error}. Give the base model's folder.",
                path=str(path),
            ) from error
        name = config.get("model_type") if isinstance(config, dict) else None
        if not isinstance(name, str):
            raise ExportError(
                f"{path} names no model_type, so the llama.cpp architecture is not known. Name it "
                "with --arch.",
                path=str(path),
            )
        heads = _whole(config, "num_attention_heads", "n_head")
        return cls(
            architecture=_RENAMED.get(name, name),
            n_heads=heads,
            n_key_heads=_whole(config, "num_key_value_heads") or heads,
        )


def export_gguf_lora(
    patches: Sequence[Scaled],
    path: str | Path,
    target: GgufTarget,
    *,
    lossy_rank: int | None = None,
    factors: tuple[ModuleFactors, ...] | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Exported:
    """Write patches of one base as one llama.cpp adapter, in float32.

    Args:
        patches: The patches, with the factor on each, which is baked in.
        path: The file to make; by convention it ends in ``.gguf``.
        target: What the base is to llama.cpp.
        lossy_rank: Rank to truncate full matrices to; None refuses them.
        factors: What :func:`module_factors` made of the patches, to save doing it again.
        force: Replace an existing file.
        dry_run: Check everything and write nothing.

    Raises:
        MissingExtraError: The package gguf is not installed.
        ExportError: A patch cannot be expressed as such an adapter; the message says why.
        InvalidParameterError: There are no patches.
        StackConflictError: A patch is given twice, or excludes another.
        BaseMismatchError: The patches are for different bases.
        OutputExistsError: The file exists.
        WriteFailedError: Writing failed; nothing was left.
    """
    out = Path(path)
    if out.is_dir() or (out.exists() and not force):
        raise OutputExistsError(
            f"{out} exists already. Choose another name or pass --force to replace a file.",
            path=str(out),
        )
    _require_gguf()
    if factors is None:
        factors = module_factors(patches, lossy_rank=lossy_rank)
    tensors = _tensors(factors, target)
    content = _encode(tensors, uniform_rank(factors), target, patches[0][0].header.base.model)
    if not dry_run:
        write_file(out, [content], force=force)
    return Exported(
        path=out,
        patches=tuple(sorted(patch.header.id for patch, _ in patches)),
        factors=factors,
        nbytes=len(content),
        dry_run=dry_run,
    )


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401  # only whether it can be imported
    except ImportError as error:
        raise MissingExtraError(
            "Writing GGUF needs the package gguf, which is not installed. Run: "
            'pip install "editkit-core[gguf]"',
            extra="gguf",
        ) from error


def _tensors(factors: Sequence[ModuleFactors], target: GgufTarget) -> dict[str, Float32Array]:
    """Return the arrays to write: A (r, d_in) and B (d_out, r), which GGUF lists the other way."""
    names = _Names(target, [made.site.module for made in factors])
    rank, tensors = uniform_rank(factors), {}
    for made in factors:
        name = names.of(made.site.module)
        u, v = made.padded(rank)
        tensors[f"{name}.weight.lora_a"] = v
        tensors[f"{name}.weight.lora_b"] = _turned(u, name, target)
    return tensors


class _Names:
    """The gguf package's names of an architecture's tensors.

    Args:
        target: The architecture.
        modules: The modules that will be asked for; they tell how many layers there are to name.
    """

    def __init__(self, target: GgufTarget, modules: Sequence[str]) -> None:
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        self._architecture = target.architecture
        if target.architecture in _ANSWERING:
            raise ExportError(
                "Whether llama.cpp runs adapters of encoder-decoders has not been checked, so none "
                "are written. Export with --to lora, or to a checkpoint and convert that.",
                architecture=target.architecture,
            )
        known = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
        if target.architecture not in known or target.architecture in _NOT_RUN:
            raise ExportError(
                f"llama.cpp runs no models of the architecture {target.architecture!r}. Export "
                "with --to lora, or to a checkpoint.",
                architecture=target.architecture,
            )
        layers = [int(number) for module in modules for number in _LAYER.findall(f"{module}.")]
        self._map = get_tensor_name_map(known[target.architecture], 1 + max(layers, default=0))

    def of(self, module: str) -> str:
        """Return the name of a module's tensor, without ``.weight``.

        Raises:
            ExportError: There is none, or the converter does more to it than rename it.
        """
        name = self._map.get_name(module)
        if name is None:
            raise ExportError(
                f"{module} has no counterpart in llama.cpp's architecture "
                f"{self._architecture!r}. Export with --to lora, or to a checkpoint.",
                module=module,
            )
        if self._architecture not in _WHOLE_BLOCK and not _FEED_FORWARD.fullmatch(name):
            raise ExportError(
                f"llama.cpp's converter may rearrange {module} ({name}) of the architecture "
                f"{self._architecture!r}, so only feed-forward weights are exported there. Export "
                "to a checkpoint and convert that.",
                module=module,
            )
        return str(name)


def _turned(u: Float32Array, name: str, target: GgufTarget) -> Float32Array:
    """Return B with its rows in the order the converter gives W's rows.

    In a head, row i of the first half and row i of the second become neighbours.
    """
    found = _QUERY_OR_KEY.fullmatch(name)
    if found is None or target.architecture not in _TURNED:
        return u
    heads = target.n_heads if found["which"] == "q" else target.n_key_heads
    if heads is None or len(u) % (2 * heads):
        raise ExportError(
            f"{name} needs the number of heads, which --arch does not tell. Give the base with "
            "--model instead.",
            tensor=name,
        )
    halves = u.reshape(heads, 2, len(u) // heads // 2, u.shape[1])  # (heads, half, row, r)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(u.shape))


def _encode(tensors: Mapping[str, Float32Array], rank: int, target: GgufTarget, base: str) -> bytes:
    """Return the file's bytes; the package writes to paths only, so by way of a temporary one."""
    from gguf import GGUFType, GGUFWriter, Keys

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.gguf"
        writer = GGUFWriter(path, target.architecture)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, float(rank))
        writer.add_string(Keys.General.DESCRIPTION, f"editkit patches for {base}")
        for name, array in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(array, dtype=np.float32))
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            return path.read_bytes()
        except OSError as error:
            raise WriteFailedError(
                f"Cannot write {path}: {error.strerror or error}. Nothing was left behind. Check "
                "that the temporary folder has space.",
                path=str(path),
            ) from error


def _whole(config: Mapping[str, Any], *names: str) -> int | None:  # Any: JSON values
    for name in names:
        if type(config.get(name)) is int:
            return int(config[name])
    return None
