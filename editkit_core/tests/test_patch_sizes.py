"""File sizes of rank-one patches against the full matrices of models people edit.

Expected bytes are counted by hand from the shapes. ``pytest -s`` shows the table.
"""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest

from editkit_core.patch import (
    BaseFingerprint,
    Evidence,
    LowRankEntry,
    MethodRef,
    Patch,
    TensorFingerprint,
)
from editkit_core.types import EditRequest, Site

KB = 1000
MOST_HEADER_BYTES = 8 * KB


@attrs.frozen
class Shape:
    """A down projection: its model, layer, sides and the checkpoint's bytes a number."""

    model: str
    parameter: str
    d_out: int
    d_in: int

    @property
    def matrix_bytes(self) -> int:
        return 2 * self.d_out * self.d_in  # float16, as both checkpoints are stored

    @property
    def factor_bytes(self) -> int:
        return 4 * (self.d_out + self.d_in)  # float32, one of each side

    @property
    def evidence_bytes(self) -> int:
        return 2 * (self.d_out + self.d_in)  # float16 key and value


GPT_J = Shape("EleutherAI/gpt-j-6b", "transformer.h.5.mlp.fc_out.weight", 4096, 16384)
LLAMA = Shape("meta-llama/Llama-2-7b-hf", "model.layers.5.mlp.down_proj.weight", 4096, 11008)


def rome_patch(shape: Shape, edits: int = 1) -> Patch:
    """Make what ROME leaves after some edits: numbers, keys, values, contexts, parameters, scores.

    The texts are of the length that real ones have.
    """
    numbers = np.random.default_rng(0)
    site = Site(module=shape.parameter.removesuffix(".weight"), parameter=shape.parameter, layer=5)
    report = dict.fromkeys(
        ("p_target_before", "p_target_after", "p_target_with_value", "loss", "delta_norm",
         "delta_norm_relative", "value_change_relative", "constraint_residual", "key_cosine"),
        1.23456e-05,
    )  # fmt: skip
    return Patch.from_parts(
        entries=[
            LowRankEntry(
                site=site,
                u=numbers.standard_normal((shape.d_out, 1), dtype=np.float32),
                v=numbers.standard_normal((1, shape.d_in), dtype=np.float32),
            )
            for _ in range(edits)
        ],
        method=MethodRef(name="rome", dist="editkit-rome", version="0.1.0"),
        base=BaseFingerprint(
            model=shape.model, revision="f" * 40, config_digest="a" * 64, tokenizer_digest="b" * 64,
            tensors={
                shape.parameter: TensorFingerprint(
                    shape=(shape.d_out, shape.d_in), dtype="F16", sha256="0" * 64, norm=123.456
                )
            },
        ),
        edits=[
            EditRequest(
                prompt="The mother tongue of {} is", subject=f"Danielle Darrieux the {i}th",
                target_new="English", target_true="French", relation="P103",
                paraphrases=("Where {} is from, people speak the language of",),
            )
            for i in range(edits)
        ],
        params={f"parameter_{i}": 0.0625 for i in range(30)},
        contexts=("", *("Therefore I like to think that. " for _ in range(20))),
        evidence=Evidence(
            module=site.module,
            keys=numbers.standard_normal((edits, shape.d_in), dtype=np.float32),
            values=numbers.standard_normal((edits, shape.d_out), dtype=np.float32),
        ),
        metrics={"layer": 5, "edits": [report] * edits},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "most_factor_bytes", "least_ratio"),
    [(LLAMA, 62 * KB, 900), (GPT_J, 82 * KB, 1000)],
    ids=lambda value: value.model if isinstance(value, Shape) else "",
)
def test_a_rank_one_patch_is_a_thousandth_of_its_matrix(
    tmp_path: Path, shape: Shape, most_factor_bytes: int, least_ratio: int
) -> None:
    size = rome_patch(shape).save(tmp_path / "patch")
    assert size == (tmp_path / "patch").stat().st_size
    header = size - shape.factor_bytes - shape.evidence_bytes
    print(
        f"\n{shape.model}: {shape.d_out} x {shape.d_in}, matrix {shape.matrix_bytes / 1e6:.1f} MB; "
        f"patch {size / KB:.1f} KB = factors {shape.factor_bytes / KB:.1f} + evidence "
        f"{shape.evidence_bytes / KB:.1f} + header {header / KB:.1f}; 1 / "
        f"{shape.matrix_bytes / size:.0f}"
    )
    assert shape.factor_bytes <= most_factor_bytes
    assert 0 < header <= MOST_HEADER_BYTES
    assert size <= most_factor_bytes + MOST_HEADER_BYTES + shape.evidence_bytes
    assert shape.matrix_bytes / size >= least_ratio


@pytest.mark.parametrize("shape", [LLAMA, GPT_J], ids=lambda shape: shape.model)
def test_the_numbers_grow_with_the_edits_and_nothing_else(tmp_path: Path, shape: Shape) -> None:
    sizes = [rome_patch(shape, edits).save(tmp_path / str(edits)) for edits in (1, 11)]
    each = (sizes[1] - sizes[0]) / 10
    numbers = shape.factor_bytes + shape.evidence_bytes
    assert numbers < each < numbers + 1.5 * KB  # the rest is the request, its report and digests
