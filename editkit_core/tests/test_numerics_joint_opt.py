"""Values of a batch trained together on the finished change."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor

from editkit_core.errors import NonFiniteEditError
from editkit_core.models.editable import EditableModel
from editkit_core.numerics.joint_opt import optimise_jointly
from editkit_core.numerics.value_loss import ValueSettings
from editkit_core.numerics.value_opt import ValueJob, ValueResult, optimise_values
from editkit_core.testing.models import TINY_FAMILIES, tiny_model
from editkit_core.types import EditRequest

REQUESTS = (
    EditRequest(prompt="The capital of {} is", subject="Norway", target_new="old Lima"),
    EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru"),
    EditRequest(prompt="The king of {} was a", subject="Peru", target_new="mill"),
)
CONTEXTS = ("", "The old mill. ")
SETTINGS = ValueSettings(
    steps=6, lr=0.3, lr_mode="relative", clamp_mode="stream", clamp_norm=4.0, weight_decay=0.0,
    kl_factor=0.0, loss_stop=0.0,
)  # fmt: skip


def readings(model: EditableModel, n: int = 3) -> Tensor:
    width = model.weight(model.site(1)).shape[1]
    return 0.1 * torch.randn(n, width, generator=torch.Generator().manual_seed(4))


def train(
    model: EditableModel, settings: ValueSettings = SETTINGS, batch: int = 8, **more: object
) -> list[ValueResult]:
    jobs = [
        ValueJob(request=request, site=model.site(1), contexts=CONTEXTS) for request in REQUESTS
    ]
    return optimise_jointly(
        model,
        jobs,
        readings(model),
        settings,
        batch=batch,
        **more,  # type: ignore[arg-type]  # named below
    )


def nll_with_the_change_written(model: EditableModel, deltas: Tensor) -> list[float]:
    """Write W + U V and read the targets with plain forward passes."""
    weight = model.weight(model.site(1))
    weight += deltas.T @ readings(model)  # (d, n) @ (n, d_in)
    losses = []
    for request in REQUESTS:
        total = 0.0
        for context in CONTEXTS:
            pair = model.encode_pair(context + request.text, request.target_new)
            with torch.no_grad():
                logs = model.model(input_ids=torch.tensor([pair.ids])).logits[0].log_softmax(-1)
            places = range(pair.n_prompt, len(pair.ids))
            total -= float(torch.stack([logs[t - 1, pair.ids[t]] for t in places]).mean())
        losses.append(total / len(CONTEXTS))
    return losses


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_the_loss_is_that_of_the_model_with_the_change_written(family: str) -> None:
    # The last iteration trains no more, so its loss is that of the values returned.
    found = train(tiny_model(family))
    deltas = torch.stack([result.delta for result in found])
    expected = nll_with_the_change_written(tiny_model(family), deltas)
    assert float(deltas.norm()) > 0
    assert [result.losses[-1] for result in found] == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_the_batch_size_changes_nothing() -> None:
    model = tiny_model("gpt2")
    for one, other in zip(train(model), train(model, batch=1), strict=True):
        torch.testing.assert_close(one.delta, other.delta, rtol=1e-3, atol=1e-4)


def test_edits_come_back_in_their_own_order_though_run_by_length() -> None:
    model = tiny_model("gpt2")
    lengths = [len(model.encode_pair(r.text, r.target_new).ids) for r in REQUESTS]
    assert lengths != sorted(lengths)
    before = []
    for request in REQUESTS:
        job = ValueJob(request=request, site=model.site(1), contexts=CONTEXTS)
        before.append(optimise_values(model, [job], SETTINGS)[0].before)
    for found in (train(model, batch=8), train(model, batch=2), train(model, batch=1)):
        for one, alone in zip(found, before, strict=True):
            torch.testing.assert_close(one.before, alone, rtol=1e-4, atol=1e-5)


def test_one_edit_is_trained_as_its_own_rank_one_change() -> None:
    model = tiny_model("llama")
    reading = readings(model, 1)
    job = ValueJob(request=REQUESTS[0], site=model.site(1), contexts=CONTEXTS)
    together = optimise_jointly(model, [job], reading, SETTINGS, batch=1)[0]
    alone = optimise_values(model, [attrs.evolve(job, reading=reading[0])], SETTINGS)[0]
    assert together.losses == pytest.approx(alone.losses, rel=1e-3)
    torch.testing.assert_close(together.delta, alone.delta, rtol=1e-2, atol=1e-3)


def test_what_other_text_sees_is_held_down() -> None:
    model = tiny_model("gpt2")
    gram = readings(model).double() @ readings(model).double().T

    def seen(found: list[ValueResult]) -> float:
        deltas = torch.stack([result.delta for result in found]).double()  # (n, d)
        return float(torch.trace(deltas.T @ gram @ deltas))

    free = train(model, gram=gram, keep=0.0)
    held = train(model, gram=gram, keep=1e4)
    assert seen(held) < 0.5 * seen(free)


def test_edits_that_are_done_are_looked_at_again() -> None:
    """All stop together: nobody ends with a loss above the stop while steps are left."""
    model = tiny_model("gpt2")
    start = train(model, attrs.evolve(SETTINGS, steps=1))
    stop = max(result.losses[0] for result in start) * 0.8
    found = train(model, attrs.evolve(SETTINGS, steps=60, lr=0.1, loss_stop=stop))
    deltas = torch.stack([result.delta for result in found])
    assert found[0].updates < 59
    assert max(nll_with_the_change_written(model, deltas)) < stop * 1.01


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("gpt2")
    before = model.state_digest()
    train(model)
    assert model.state_digest() == before
    assert not any(module._forward_hooks for module in model.model.modules())


def test_weights_that_are_not_finite_are_told() -> None:
    model = tiny_model("gpt2")
    model.parameter("transformer.h.2.mlp.c_fc.weight").data.fill_(float("inf"))
    with pytest.raises(NonFiniteEditError, match="Norway"):
        train(model)
