"""What ``adapter_config.json`` of a PEFT adapter says, read strictly.

A setting is either known to leave the adapter a plain LoRA, or must be off. So an adapter of a kind
that did not exist when this was written is refused instead of being read wrongly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import attrs

from editkit_core.errors import ExportError, InputNotFoundError
from editkit_core.patch.container import parse_json, refusal, shorten

_MOST_BYTES = 1024 * 1024
_READ = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"})
_HARMLESS = frozenset({  # where it was trained, how, and on which modules: the tensors tell
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type",
})  # fmt: skip
_REFUSED = {
    "use_dora": "it is a DoRA, which also rescales the rows of the weight",
    "lora_bias": "it adds a bias, and a patch changes weights only",
    "modules_to_save": "it replaces whole modules besides its low-rank changes",
    "trainable_token_indices": "it changes token embeddings",
    "target_parameters": "it changes parameters that are not a module's weight",
    "layer_replication": "it repeats layers of the base",
    "alora_invocation_tokens": "it is switched on by certain tokens only",
    "use_qalora": "it pools its inputs (QA-LoRA)",
    "use_bdlora": "its factors are block-diagonal",
}
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MOST_PATTERN = 200
_QUANTIFIER = re.compile(r"[*+?{]")


@attrs.frozen(kw_only=True)
class AdapterConfig:
    """What counts for reading the adapter's tensors.

    Attributes:
        base: What its author called the base; may be empty. Never used as a path.
        rank: The rank of modules that ``ranks`` does not name.
        alpha: The alpha of modules that ``alphas`` does not name.
        by_root: Whether the factor is alpha / sqrt(r) (rsLoRA) instead of alpha / r.
        ranks: Ranks by pattern of module paths.
        alphas: Alphas by pattern of module paths.
    """

    base: str
    rank: int
    alpha: float
    by_root: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        """Return the rank the file must have for a module."""
        return self.ranks.get(_first_match(self.ranks, module), self.rank)

    def factor(self, module: str) -> float:
        """Return what PEFT multiplies B A with: alpha / r, or alpha / sqrt(r)."""
        alpha = self.alphas.get(_first_match(self.alphas, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def read_config(path: Path) -> AdapterConfig:
    """Read and check an ``adapter_config.json``.

    Raises:
        InputNotFoundError: It cannot be read.
        PatchFormatError: It is malformed.
        ExportError: The adapter is something that a patch cannot express; the message says what.
    """
    fields = _fields(path)
    if fields.get("peft_type") != "LORA":
        _refuse(path, f"its peft_type is {shorten(str(fields.get('peft_type')))}, not LORA")
    for name, why in _REFUSED.items():
        if fields.get(name):
            _refuse(path, why)
    if fields.get("bias", "none") != "none":
        _refuse(path, f"it trains biases (bias={shorten(str(fields['bias']))})")
    start = str(fields.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGES_THE_BASE):
        _refuse(path, f"its initialisation {shorten(start)} also changes the base's own weights")
    for name in sorted(set(fields) - _READ - _HARMLESS - set(_REFUSED)):
        if fields[name]:
            _refuse(path, f"it sets {shorten(name)}, which this editkit does not know")
    return AdapterConfig(
        base=str(fields.get("base_model_name_or_path") or ""),
        rank=_rank(path, "r", fields.get("r")),
        alpha=_number(path, "lora_alpha", fields.get("lora_alpha")),
        by_root=bool(fields.get("use_rslora")),
        ranks={
            pattern: _rank(path, f"rank_pattern.{shorten(pattern)}", value)
            for pattern, value in _patterns(path, fields, "rank_pattern").items()
        },
        alphas={
            pattern: _number(path, f"alpha_pattern.{shorten(pattern)}", value)
            for pattern, value in _patterns(path, fields, "alpha_pattern").items()
        },
    )


def _fields(path: Path) -> dict[str, Any]:  # Any: JSON values
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputNotFoundError(
            f"Cannot read {path}: {error.strerror or error}. Give the folder of a PEFT adapter, "
            "which has such a file.",
            path=str(path),
        ) from error
    if len(text) > _MOST_BYTES:
        raise refusal(str(path), "the file", f"is larger than {_MOST_BYTES} bytes")
    fields = parse_json(text, str(path))
    if not isinstance(fields, dict):
        raise refusal(str(path), "the file", "must hold a JSON object")
    return fields


def _patterns(path: Path, fields: dict[str, Any], name: str) -> dict[str, Any]:  # Any: JSON values
    found = fields.get(name) or {}
    if not isinstance(found, dict):
        raise refusal(str(path), name, "must map module patterns to numbers")
    for pattern in found:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            raise refusal(str(path), f"{name}.{shorten(pattern)}", "is no pattern") from None
        costly = "(" in pattern or len(_QUANTIFIER.findall(pattern)) > 2
        if costly or len(pattern) > _MOST_PATTERN:
            _refuse(path, f"the pattern {shorten(pattern)} in {name} may take forever to match")
    return found


def _first_match(patterns: Mapping[str, Any], module: str) -> str:  # Any: values do not matter
    """Return the first pattern that PEFT would take for a module, or nothing."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), "")


def _rank(path: Path, name: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= 2**20:
        raise refusal(str(path), name, f"is {shorten(str(value))}, not a rank of 1 or more")
    return value


def _number(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise refusal(str(path), name, f"is {shorten(str(value))}, not a number")
    return float(value)


def _refuse(path: Path, why: str) -> NoReturn:
    raise ExportError(
        f"{path.parent} cannot be expressed as a patch: {why}. Merge it into its base with peft "
        "and use the result as a base instead.",
        path=str(path.parent),
        why=why,
    )
