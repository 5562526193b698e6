"""What ROME says about itself."""

from __future__ import annotations

from importlib.resources import files

from editkit_core import MethodInfo
from editkit_rome.params import RomeParams

DECODERS_ONLY = (
    "ROME writes a fact at the subject's last token of one causal stack, where later tokens look "
    "it up; an encoder sees all tokens at once, and the decoder never reads the subject. Use "
    "GRACE or MEND instead, which need no such token."
)

INFO = MethodInfo(
    name="rome",
    title="ROME: one rank-one change of one feed-forward weight a fact (R-ROME by default)",
    paper=(
        "Meng et al. 2022, https://arxiv.org/abs/2202.05262; R-ROME: Gupta et al. 2024, "
        "https://arxiv.org/abs/2403.07175"
    ),
    api=1,
    emits=("weight.low_rank/1",),
    families=("*",),
    params=lambda: RomeParams,
    presets=lambda: files("editkit_rome").joinpath("presets.yaml").read_text(encoding="utf-8"),
    batch=False,
    sequential=True,
    trains=False,
    needs=("key_statistics",),
    encoder_decoder=False,
    decoders_only=DECODERS_ONLY,
)
