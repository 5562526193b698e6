"""What MEND says about itself."""

from __future__ import annotations

from importlib.resources import files

from editkit_core import MethodInfo
from editkit_mend.params import MendParams

INFO = MethodInfo(
    name="mend",
    title="MEND: a trained editor turns an edit's gradient into a low-rank change",
    paper="Mitchell et al. 2022, https://arxiv.org/abs/2110.11309",
    api=1,
    emits=("weight.low_rank/1",),
    families=("*",),
    params=lambda: MendParams,
    presets=lambda: files("editkit_mend").joinpath("presets.yaml").read_text(encoding="utf-8"),
    batch=True,
    sequential=True,
    trains=True,
    needs=("editor",),
    encoder_decoder=True,
)
