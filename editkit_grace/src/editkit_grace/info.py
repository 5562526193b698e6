"""What GRACE says about itself."""

from __future__ import annotations

from importlib.resources import files

from editkit_core import MethodInfo
from editkit_grace.params import GraceParams

INFO = MethodInfo(
    name="grace",
    title="GRACE: a codebook of keys and values beside one layer; the weights stay as they are",
    paper="Hartvigsen et al. 2023, https://arxiv.org/abs/2211.11031",
    api=1,
    emits=("gate.codebook/1",),
    families=("*",),
    params=lambda: GraceParams,
    presets=lambda: files("editkit_grace").joinpath("presets.yaml").read_text(encoding="utf-8"),
    batch=False,
    sequential=True,
    trains=False,
    encoder_decoder=True,
)
