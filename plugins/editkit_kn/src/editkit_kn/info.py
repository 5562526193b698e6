"""What KN says about itself."""

from __future__ import annotations

from importlib.resources import files

from editkit_core import MethodInfo
from editkit_kn.params import KnParams

INFO = MethodInfo(
    name="kn",
    title="KN: change the columns of the feed-forward neurons that a fact is attributed to",
    paper="Dai et al. 2022, https://arxiv.org/abs/2104.08696",
    api=1,
    emits=("weight.cols/1",),
    families=("*",),
    params=lambda: KnParams,
    presets=lambda: files("editkit_kn").joinpath("presets.yaml").read_text(encoding="utf-8"),
    batch=True,
    sequential=True,
    trains=False,
    needs=(),
    encoder_decoder=True,
)
