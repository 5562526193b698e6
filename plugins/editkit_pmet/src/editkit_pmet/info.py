"""What PMET says about itself."""

from __future__ import annotations

from importlib.resources import files

from editkit_core import MethodInfo
from editkit_pmet.params import PmetParams

INFO = MethodInfo(
    name="pmet",
    title="PMET: as MEMIT, with values found for attention and feed-forward apart",
    paper="Li et al. 2024, https://arxiv.org/abs/2308.08742",
    api=1,
    emits=("weight.low_rank/1", "weight.dense/1"),
    families=("*",),
    params=lambda: PmetParams,
    presets=lambda: files("editkit_pmet").joinpath("presets.yaml").read_text(encoding="utf-8"),
    batch=True,
    sequential=True,
    trains=False,
    needs=("key_statistics",),
    encoder_decoder=False,
)
