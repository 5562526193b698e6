"""What MEMIT says about itself."""

from __future__ import annotations

from importlib.resources import files

from editkit_core import MethodInfo
from editkit_memit.params import MemitParams

INFO = MethodInfo(
    name="memit",
    title="MEMIT: many facts at once, spread over the feed-forward weights of a window of layers",
    paper="Meng et al. 2023, https://arxiv.org/abs/2210.07229",
    api=1,
    emits=("weight.low_rank/1", "weight.dense/1"),
    families=("*",),
    params=lambda: MemitParams,
    presets=lambda: files("editkit_memit").joinpath("presets.yaml").read_text(encoding="utf-8"),
    batch=True,
    sequential=True,
    trains=False,
    needs=("key_statistics",),
    encoder_decoder=False,
)
