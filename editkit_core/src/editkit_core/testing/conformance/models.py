"""The tiny models of the conformance kit: fresh copies, so that no behaviour sees another's."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import attrs
import torch

from editkit_core.models.editable import EditableModel
from editkit_core.testing.conformance.case import MethodCase, Setting
from editkit_core.testing.models import (
    TINY_ENCODER_DECODERS,
    TINY_FAMILIES,
    tiny_model,
    tiny_tokenizer,
)

if TYPE_CHECKING:
    from editkit_core.types import MethodInfo

_ENCODER_DECODER_FAMILY = "t5"


def declared(info: MethodInfo, case: MethodCase) -> tuple[str, ...]:
    """Return the names of the tiny models whose families a method says it edits."""
    if case.families is not None:
        return case.families
    return tuple(name for name in (*known_names(), *case.models) if _declares(info, name))


def undeclared(info: MethodInfo) -> tuple[str, ...]:
    """Return the names of the tiny models whose families a method does not edit."""
    return tuple(name for name in known_names() if not _declares(info, name))


def known_names() -> tuple[str, ...]:
    """Return the names of all tiny models of the core."""
    return (*TINY_FAMILIES, *TINY_ENCODER_DECODERS)


def _declares(info: MethodInfo, name: str) -> bool:
    if name in TINY_ENCODER_DECODERS and not info.encoder_decoder:
        return False
    family = _ENCODER_DECODER_FAMILY if name in TINY_ENCODER_DECODERS else name
    return "*" in info.families or family in info.families


def make(case: MethodCase, setting: Setting, seed: int = 0) -> EditableModel:
    """Make the model of a setting."""
    if setting.family in case.models:
        return case.models[setting.family](setting)
    if setting.family in TINY_ENCODER_DECODERS and setting.tokenizer == "bpe":
        tokenizer = tiny_tokenizer("bpe", bos=False, eos=True, pad=True)
        tokenizer.bos_token = None
        model = tiny_model(setting.family, seed=seed, tokenizer=tokenizer)
    elif setting.family in TINY_ENCODER_DECODERS:
        model = tiny_model(setting.family, seed=seed)
    else:
        model = tiny_model(setting.family, seed=seed, tokenizer=setting.tokenizer)
    model.model.to(getattr(torch, setting.dtype))
    return model


def fresh(model: EditableModel) -> EditableModel:
    """Return a copy that shares nothing with the original."""
    return EditableModel(
        copy.deepcopy(model.model), copy.deepcopy(model.tokenizer), model.family, name=model.name
    )


def renamed(model: EditableModel, name: str) -> EditableModel:
    """Return a copy whose family goes by another name."""
    family = attrs.evolve(model.family, name=name, model_types=())
    copied = fresh(model)
    return EditableModel(copied.model, copied.tokenizer, family, name=model.name)
