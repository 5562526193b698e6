"""What AlphaEdit says about itself."""

from __future__ import annotations

from importlib.resources import files

from editkit_alphaedit.params import AlphaEditParams
from editkit_core import MethodInfo

INFO = MethodInfo(
    name="alphaedit",
    title="AlphaEdit: batch after batch, within the null space of other text's keys",
    paper="Fang et al. 2025, https://arxiv.org/abs/2410.02355",
    api=1,
    emits=("weight.low_rank/1", "weight.dense/1"),
    families=("*",),
    params=lambda: AlphaEditParams,
    presets=lambda: files("editkit_alphaedit").joinpath("presets.yaml").read_text(encoding="utf-8"),
    batch=True,
    sequential=True,
    trains=False,
    needs=("key_statistics",),
    encoder_decoder=False,
)
