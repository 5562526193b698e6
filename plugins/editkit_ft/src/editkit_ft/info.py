"""What FT says about itself."""

from __future__ import annotations

from importlib.resources import files

from editkit_core import MethodInfo
from editkit_ft.params import FtParams

INFO = MethodInfo(
    name="ft",
    title="FT-L and FT-M: fine-tune one feed-forward weight, with a bound on its change or without",
    paper=(
        "Zhu et al. 2020, https://arxiv.org/abs/2012.00363; FT-M: Zhang et al. 2024, "
        "https://arxiv.org/abs/2401.01286"
    ),
    api=1,
    emits=("weight.dense/1", "weight.low_rank/1", "weight.dense_int8/1"),
    families=("*",),
    params=lambda: FtParams,
    presets=lambda: files("editkit_ft").joinpath("presets.yaml").read_text(encoding="utf-8"),
    batch=True,
    sequential=True,
    trains=False,
    needs=(),
    encoder_decoder=True,
)
