"""The stream that values are measured by is the base's, whatever patches did to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from editkit_core import EditRequest
from editkit_core.models.editable import EditableModel
from editkit_core.models.text import pad_batch
from editkit_core.numerics.anchor import without_weight_patches
from editkit_core.numerics.joint_opt import optimise_jointly
from editkit_core.numerics.value_opt import ValueJob, ValueSettings, optimise_values
from editkit_core.patch.apply import apply_patch
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import LowRankEntry, MethodRef, Patch
from editkit_core.testing.models import tiny_model

REQUEST = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima")
SETTINGS = ValueSettings(
    steps=4, lr=0.3, lr_mode="relative", clamp_mode="stream", clamp_norm=0.5, loss_stop=0.0
)


def large_patch(model: EditableModel) -> Patch:
    """Make a change many times the weight."""
    site = model.site(0)
    d_out, d_in = model.weight(site).shape
    draw = np.random.default_rng(0)
    u, v = draw.standard_normal((d_out, 2)), draw.standard_normal((2, d_in))
    entry = LowRankEntry(site=site, u=20 * u.astype(np.float32), v=v.astype(np.float32))
    return Patch.from_parts(
        entries=[entry],
        method=MethodRef(name="test", dist="editkit-core", version="0"),
        base=base_fingerprint(model, [site.parameter]),
        edits=[REQUEST],
        params={},
        seed=0,
    )


def jobs(model: EditableModel) -> list[ValueJob]:
    return [ValueJob(request=REQUEST, site=model.site(1), contexts=("", "A mill. "))]


@pytest.mark.parametrize("mode", ["merge", "overlay"])
@pytest.mark.parametrize("way", ["alone", "jointly"])
def test_the_stream_and_the_bound_are_those_of_the_base(mode: str, way: str) -> None:
    model = tiny_model("gpt2", n_layers=4)

    def found() -> tuple[float, float]:
        if way == "alone":
            (result,) = optimise_values(model, jobs(model), SETTINGS)
        else:
            width = model.weight(model.site(1)).shape[1]
            readings = torch.ones(1, width) / width
            (result,) = optimise_jointly(model, jobs(model), readings, SETTINGS, batch=1)
        return result.stream_norm, float(result.delta.norm())

    base, _ = found()
    with apply_patch(model, large_patch(model), mode=mode):
        ids = torch.tensor([model.encode(REQUEST.text).ids])
        with torch.no_grad():
            states = model.model(input_ids=ids, output_hidden_states=True).hidden_states[2]
        stream, change = found()
    assert float(states[0, model.subject_position(REQUEST)].norm()) > 3 * base
    assert stream == pytest.approx(base, rel=1e-4)
    assert change <= 0.5 * base * 1.001


@pytest.mark.parametrize("mode", ["merge", "overlay"])
def test_without_patches_the_model_says_what_the_base_says(mode: str) -> None:
    model = tiny_model("llama")
    batch = pad_batch([model.encode(REQUEST.text).ids], model.pad_id)
    with torch.no_grad():
        base = model.logits(batch)
        with apply_patch(model, large_patch(model), mode=mode):
            changed = model.logits(batch)
            with without_weight_patches(model):
                again = model.logits(batch)
            after = model.logits(batch)
    assert float((changed - base).abs().max()) > 1e-2
    # The patch is many times the weight, so taking it back leaves rounding of that size.
    torch.testing.assert_close(again, base, rtol=1e-3, atol=2e-3)
    assert torch.equal(after, changed)
