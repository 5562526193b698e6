"""A step that runs the upper blocks alone; passes of the whole model say what is expected."""

from __future__ import annotations

import attrs
import pytest
import torch

from editkit_core import EditContext, EditRequest
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import IGNORED, PairBatch, pair_batch, pair_logits
from editkit_core.patch.apply import apply_patch
from editkit_core.testing.models import TINY_ENCODER_DECODERS, TINY_FAMILIES, tiny_model
from editkit_core.testing.patches import random_codebook, random_patch
from editkit_ft import training
from editkit_ft.params import FtParams
from editkit_ft.steps import Step, make_step
from editkit_ft.training import batch_loss, train

PAIRS = [("The capital of Norway is", "old Lima"), ("Brazil speaks", "Peru")]
REQUESTS = (
    EditRequest(prompt="The capital of {} is", subject="Norway", target_new="old Lima"),
    EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru"),
    EditRequest(prompt="The river of {} is the", subject="Peru", target_new="a"),
)
PARAMS = FtParams(layers=(2,), steps=4, lr=1e-3, batch_size=2, loss_skip=0.0, loss_stop=0.0)


def runs_of(model: EditableModel, layer: int, params: FtParams = PARAMS) -> int:
    """Train, and return how often a block was run."""
    seen: list[None] = []
    block = model.module(model.family.block(layer))
    handle = block.register_forward_hook(lambda *_: seen.append(None))
    try:
        sites = [model.site(number) for number in params.layers or ()]
        train(model, REQUESTS, sites, params, EditContext())
    finally:
        handle.remove()
    return len(seen)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_its_logits_are_those_of_the_whole_model(family: str, layer: int) -> None:
    model = tiny_model(family)
    batch = pair_batch(model, PAIRS)
    step = make_step(model, batch, [model.site(layer)])
    with torch.no_grad():
        found, whole = step.logits(), pair_logits(model, batch)
    counts = (batch.labels != IGNORED).any(dim=0)
    torch.testing.assert_close(found, whole[:, counts], rtol=1e-4, atol=1e-5)
    assert torch.equal(step.batch.labels, batch.labels[:, counts])


@pytest.mark.parametrize("objective", ["prompt_last", "target_new"])
def test_its_loss_is_that_of_the_whole_model(objective: str) -> None:
    model = tiny_model("llama")
    params = attrs.evolve(PARAMS, objective=objective)
    batch = pair_batch(model, PAIRS)
    step = make_step(model, batch, [model.site(1)])
    with torch.no_grad():
        found = batch_loss(step.logits(), step.batch, params)
        expected = batch_loss(pair_logits(model, batch), batch, params)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", ["prompt_last", "target_new"])
@pytest.mark.parametrize("layers", [(0,), (2,), (1, 2)])
@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_training_gives_what_passes_of_the_whole_model_give(
    family: str, layers: tuple[int, ...], objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    params = attrs.evolve(PARAMS, layers=layers, objective=objective)
    sites = [model.site(layer) for layer in layers]
    found = train(model, REQUESTS, sites, params, EditContext())

    def whole(model: EditableModel, batch: PairBatch, _: object) -> Step:
        return Step(batch, lambda: pair_logits(model, batch))

    monkeypatch.setattr(training, "make_step", whole)
    expected = train(model, REQUESTS, sites, params, EditContext())
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    for made, wanted in zip(found.deltas, expected.deltas, strict=True):
        # Adam divides by a gradient's size, which for the smallest is rounding.
        assert float((made - wanted).norm() / wanted.norm()) < 1e-2


def test_the_blocks_below_are_run_once_a_batch_and_the_others_in_every_step() -> None:
    model = tiny_model("gpt2")
    taster = 1  # a pass of one token, that says what blocks return, runs the first block
    assert runs_of(model, 1) == 2
    assert runs_of(model, 0) == 2 + 2 * taster
    assert runs_of(model, 2) == 2 * PARAMS.steps


def test_changes_of_weights_below_are_seen() -> None:
    model = tiny_model("gpt2")
    batch = pair_batch(model, PAIRS)
    counts = (batch.labels != IGNORED).any(dim=0)
    for mode in ("merge", "overlay"):
        with apply_patch(model, random_patch(model, layers=(0, 2)), mode=mode), torch.no_grad():  # type: ignore[arg-type]  # one of two words
            found = make_step(model, batch, [model.site(1)]).logits()
            whole = pair_logits(model, batch)
        torch.testing.assert_close(found, whole[:, counts], rtol=1e-4, atol=1e-5)


def test_with_a_codebook_on_the_model_every_step_runs_all_of_it() -> None:
    model = tiny_model("gpt2")
    with apply_patch(model, random_codebook(model, REQUESTS[:1], layer=1)):
        assert runs_of(model, 0) == 2 * PARAMS.steps
    assert runs_of(model, 0) < 2 * PARAMS.steps


@pytest.mark.parametrize("family", sorted(TINY_ENCODER_DECODERS))
def test_with_an_encoder_every_step_runs_all_of_the_model(family: str) -> None:
    model = tiny_model(family)
    assert runs_of(model, 0) == 2 * PARAMS.steps
