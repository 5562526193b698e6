"""What an edit must leave as it was: weights, flags, hooks, settings, random states, tokenizer.

A `Snapshot` holds everything as plain values by name, so that a difference can be told by name.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np
import torch
from torch import nn

from editkit_core.models.holding import fetch
from editkit_core.patch.bits import as_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from editkit_core.models.editable import EditableModel

Part = Literal[
    "weights", "flags", "hooks", "structure", "configuration", "randomness", "tokenizer", "process"
]
Values = Mapping[str, Any]  # Any: whatever can be compared with ==

_MODULE_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_GLOBAL_HOOKS = (
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
)
_TOKENIZER = ("chat_template", "model_max_length", "padding_side", "truncation_side")
_CALLS = ("padding", "truncation")  # what the last call asked for, set anew by each


@attrs.frozen(eq=False)
class Snapshot:
    """Everything an edit must leave as it was, by part and name."""

    parts: Mapping[Part, Values]

    @classmethod
    def of(cls, model: EditableModel) -> Snapshot:
        """Write down a model, its tokenizer and the process."""
        return cls(
            {
                "weights": dict(_weights(model.model)),
                "flags": dict(_flags(model.model)),
                "hooks": dict(_hooks(model.model)),
                "structure": dict(_structure(model.model)),
                "configuration": _configuration(model),
                "randomness": _randomness(),
                "tokenizer": _tokenizer(model.tokenizer),
                "process": _process(),
            }
        )

    def changed(self, later: Snapshot, *parts: Part) -> list[str]:
        """Return the names of what differs in a later snapshot, in these parts or in all."""
        found = []
        for part in parts or tuple(self.parts):
            before, after = self.parts[part], later.parts[part]
            names = [*before, *(name for name in after if name not in before)]
            found += [n for n in names if before.get(n, _MISSING) != after.get(n, _MISSING)]
        return found


_MISSING = object()


def _weights(model: nn.Module) -> Iterator[tuple[str, bytes]]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in named:
        owner, _, leaf = name.rpartition(".")
        tensor = fetch(model.get_submodule(owner), leaf)
        head = f"{named[name].dtype} {tuple(named[name].shape)} ".encode()
        yield name, head + (b"" if tensor is None else bytes(as_bytes(tensor)))


def _flags(model: nn.Module) -> Iterator[tuple[str, object]]:
    for name, module in model.named_modules():
        yield f"training of {name or 'the model'}", module.training
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        yield f"requires_grad of {name}", parameter.requires_grad
        yield f"grad of {name}", None if gradient is None else bytes(as_bytes(gradient))


def _hooks(model: nn.Module) -> Iterator[tuple[str, object]]:
    for name, module in model.named_modules():
        for kind in _MODULE_HOOKS:
            yield f"{kind[1:]} of {name or 'the model'}", _called(module, kind)
    for name, parameter in model.named_parameters():
        for kind in _TENSOR_HOOKS:
            yield f"{kind[1:]} of {name}", _called(parameter, kind)
    for kind in _GLOBAL_HOOKS:
        yield kind[1:], _called(nn.modules.module, kind)


def _called(holder: object, kind: str) -> tuple[str, ...]:
    """Return what hooks are called; one that was taken off and put back again is the same."""
    hooks = getattr(holder, kind, None) or {}
    return tuple(getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks.values())


def _structure(model: nn.Module) -> Iterator[tuple[str, object]]:
    for name, module in model.named_modules():
        own = vars(module).get("forward")
        yield f"module {name or 'itself'}", (type(module), id(module), id(own) if own else None)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield f"parameter {name}", (type(parameter), id(parameter))


def _configuration(model: EditableModel) -> Values:
    settings = getattr(model.model, "generation_config", None)
    return {
        **{f"config.{name}": str(value) for name, value in model.model.config.to_dict().items()},
        "generation_config": str(settings.to_dict()) if settings is not None else None,
        "attention implementation": getattr(model.model.config, "_attn_implementation", None),
        "the applied patches": tuple(active.patch.id for active in model.ledger.active),
        "what was asked": None if model.queries is None else model.queries.tolist(),
    }


def _randomness() -> Values:
    kind, keys, *rest = np.random.get_state()
    found: dict[str, object] = {
        "the random state of Python": random.getstate(),
        "the random state of NumPy": (kind, np.asarray(keys).tobytes(), tuple(rest)),
        "the random state of torch": bytes(as_bytes(torch.get_rng_state())),
    }
    if torch.cuda.is_available():
        states = torch.cuda.get_rng_state_all()
        found["the random state of CUDA"] = [bytes(as_bytes(state)) for state in states]
    return found


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> Values:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return {
        **{name: getattr(tokenizer, name, None) for name in _TOKENIZER},
        "special tokens": str(tokenizer.special_tokens_map),
        "vocabulary size": len(tokenizer),
        **{f"tokenizer.{n}": json.dumps(v) for n, v in state.items() if n not in _CALLS},
    }


def _process() -> Values:
    asked: Mapping[str, Callable[[], object]] = {
        "torch.is_grad_enabled": torch.is_grad_enabled,
        "torch.is_inference_mode_enabled": torch.is_inference_mode_enabled,
        "torch.is_anomaly_enabled": torch.is_anomaly_enabled,
        "torch.get_default_dtype": torch.get_default_dtype,
        "torch.get_num_threads": torch.get_num_threads,
        "torch.are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled,
        "the working folder": os.getcwd,
    }
    environment = {f"environment variable {name}": value for name, value in os.environ.items()}
    return {**{name: ask() for name, ask in asked.items()}, **environment}
