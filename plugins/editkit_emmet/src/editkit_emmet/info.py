"""What EMMET says about itself."""

from __future__ import annotations

from importlib.resources import files

from editkit_core import MethodInfo
from editkit_emmet.params import EmmetParams

INFO = MethodInfo(
    name="emmet",
    title="EMMET: a batch of facts at one layer, with equality constraints as ROME has for one",
    paper="Gupta et al. 2024, https://arxiv.org/abs/2403.14236",
    api=1,
    emits=("weight.low_rank/1", "weight.dense/1"),
    families=("*",),
    params=lambda: EmmetParams,
    presets=lambda: files("editkit_emmet").joinpath("presets.yaml").read_text(encoding="utf-8"),
    batch=True,
    sequential=True,
    trains=False,
    needs=("key_statistics",),
    encoder_decoder=False,
)
