"""The value that GRACE trains, against forward passes of the whole model with a hook of our own."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import torch
from torch import Tensor, nn

from editkit_core.errors import NonFiniteEditError
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import nll, pair_batch
from editkit_core.patch.kinds.codebook import REPLACEMENTS, Replacement
from editkit_core.testing.models import TINY_ENCODER_DECODERS, TINY_FAMILIES, tiny_model
from editkit_core.types import EditRequest, SilentProgress
from editkit_grace.locate import site_of
from editkit_grace.params import GraceParams, Stack
from editkit_grace.value import Answer, Question, optimise_value

NORWAY = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima")
PERU = EditRequest(prompt="The capital of {} is", subject="Peru", target_new="Oslo")
QUICK = GraceParams(layer=1, steps=5, lr=0.1)
PLACES: list[tuple[str, GraceParams]] = [
    *((family, QUICK) for family in sorted(TINY_FAMILIES)),
    *((family, QUICK) for family in sorted(TINY_ENCODER_DECODERS)),
    ("t5", attrs.evolve(QUICK, stack="encoder")),
    ("gpt2", attrs.evolve(QUICK, layer=0)),
    ("gpt2", attrs.evolve(QUICK, projection="c_fc")),
    ("llama", attrs.evolve(QUICK, projection="gate_proj", layer=2)),
]


def ask(model: EditableModel, params: GraceParams, request: EditRequest = NORWAY) -> Question:
    return Question.ask(model, site_of(model, params), request, params.replacement)


def query(model: EditableModel, params: GraceParams, request: EditRequest = NORWAY) -> int:
    """The query's column, from the tokenizer alone."""
    if model.is_encoder_decoder:
        ids = model.tokenizer(request.text)["input_ids"]
        return len(ids) - 1 if params.stack == "encoder" else 0
    return len(model.tokenizer(request.text)["input_ids"]) - 1


def columns(mode: Replacement, at: int, length: int) -> Sequence[int]:
    every = {"replace_last": [at], "replace_prompt": range(at), "replace_all": range(length)}
    return list(every[mode])


def whole(
    model: EditableModel, params: GraceParams, value: Tensor, request: EditRequest = NORWAY
) -> Tensor:
    """The target's mean negative log-likelihood by one pass of the whole model."""

    def put(_: nn.Module, __: object, output: Tensor) -> Tensor:
        at = columns(params.replacement, query(model, params, request), output.shape[1])
        new = output.clone()
        new[0, at] = value.to(output.dtype)
        return new

    batch = pair_batch(model, [(request.text, request.target_new)], end=True)
    handle = model.module(site_of(model, params).module).register_forward_hook(put)
    try:
        logits = model.model(**batch.inputs, use_cache=False).logits
    finally:
        handle.remove()
    return nll(logits.float(), batch.labels)[0]


def some_value(question: Question, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return question.before + torch.randn(question.before.shape, generator=generator)


@pytest.mark.parametrize(("family", "params"), PLACES)
def test_a_partial_pass_gives_the_whole_models_answer(family: str, params: GraceParams) -> None:
    model = tiny_model(family)
    question = ask(model, params)
    value = some_value(question)
    with torch.no_grad():
        expected = whole(model, params, value)
        found = question.answer(value)
    torch.testing.assert_close(found.nll, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", REPLACEMENTS)
@pytest.mark.parametrize(("family", "stack"), [("gpt2", "decoder"), ("t5", "encoder")])
def test_a_value_stands_where_the_gate_will_put_it(
    family: str, stack: Stack, mode: Replacement
) -> None:
    model = tiny_model(family)
    params = attrs.evolve(QUICK, replacement=mode, stack=stack)
    question = ask(model, params)
    value = some_value(question)
    with torch.no_grad():
        expected = whole(model, params, value)
        torch.testing.assert_close(question.answer(value).nll, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "params"), PLACES[-6:])
def test_the_first_update_follows_the_sign_of_the_gradient(
    family: str, params: GraceParams
) -> None:
    model = tiny_model(family)
    params = attrs.evolve(params, steps=1, lr=1e-3, lr_mode="absolute")
    question = ask(model, params)
    value = question.before.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(whole(model, params, value), [value])
    found = optimise_value([question], None, params, 0, SilentProgress())
    assert found.updates == 1
    moved = gradient.abs() > 1e-4  # Adam's first step is lr · sign(g), but where g is next to 0
    expected = question.before - 1e-3 * gradient.sign()
    torch.testing.assert_close(found.value[moved], expected[moved], rtol=1e-4, atol=1e-6)


def test_a_relative_rate_is_a_share_of_the_outputs_root_mean_square() -> None:
    model = tiny_model("gpt2")
    question = ask(model, QUICK)
    rms = float(question.before.square().mean().sqrt())
    relative = attrs.evolve(QUICK, steps=3, lr=0.01, lr_mode="relative")
    absolute = attrs.evolve(QUICK, steps=3, lr=0.01 * rms, lr_mode="absolute")
    found = [optimise_value([question], None, p, 0, SilentProgress()) for p in (relative, absolute)]
    torch.testing.assert_close(found[0].value, found[1].value, rtol=1e-4, atol=1e-5)


def test_a_warm_value_starts_at_what_the_module_gives() -> None:
    model = tiny_model("gpt2")
    question = ask(model, QUICK)
    params = attrs.evolve(QUICK, early_stop_loss=1e9)  # reached at once
    found = optimise_value([question], None, params, 0, SilentProgress())
    assert found.updates == 0
    torch.testing.assert_close(found.value, question.before, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.answers[0].nll, question.plain.nll, rtol=1e-5, atol=1e-5)


def test_a_cold_value_starts_between_0_and_1_by_its_seed() -> None:
    question = ask(tiny_model("gpt2"), QUICK)
    params = attrs.evolve(QUICK, init="cold", lr_mode="absolute", early_stop_loss=1e9)
    first, again, other = (
        optimise_value([question], None, params, seed, SilentProgress()).value for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.min()) >= 0
    assert float(first.max()) < 1
    assert float(first.std()) > 0.2  # 1/√12 for a uniform draw


def test_training_stops_at_the_loss_that_is_enough() -> None:
    model = tiny_model("gpt2")
    question = ask(model, QUICK)
    long = attrs.evolve(QUICK, steps=60, lr=0.3, early_stop_loss=None)
    all_steps = optimise_value([question], None, long, 0, SilentProgress())
    enough = (all_steps.loss + float(question.plain.nll)) / 2
    stopped = optimise_value(
        [question], None, attrs.evolve(long, early_stop_loss=enough), 0, SilentProgress()
    )
    assert stopped.updates < all_steps.updates
    assert stopped.loss < enough


def test_the_best_value_seen_is_returned() -> None:
    model = tiny_model("gpt2")
    question = ask(model, QUICK)
    careful = attrs.evolve(QUICK, steps=60, lr=0.3, early_stop_loss=None)
    good = optimise_value([question], None, careful, 0, SilentProgress())
    wild = attrs.evolve(QUICK, steps=4, lr=100.0, early_stop_loss=None)
    losses: list[float] = []

    class Listening(SilentProgress):
        def advance(self, steps: int = 1, note: str = "") -> None:
            losses.append(float(note.removeprefix("loss ")))

    found = optimise_value([question], good.value, wild, 0, Listening())
    assert losses[-1] > losses[0] + 0.1  # so the last value was not the best
    assert found.loss == pytest.approx(min(losses), abs=0.006)
    with torch.no_grad():
        assert float(whole(model, QUICK, found.value)) == pytest.approx(found.loss, rel=1e-4)


def test_a_value_for_two_prompts_is_trained_on_their_mean_loss() -> None:
    model = tiny_model("gpt2")
    questions = [ask(model, QUICK, request) for request in (NORWAY, PERU)]
    found = optimise_value(questions, None, QUICK, 0, SilentProgress())
    with torch.no_grad():
        both = [float(whole(model, QUICK, found.value, request)) for request in (NORWAY, PERU)]
    assert found.loss == pytest.approx(sum(both) / 2, rel=1e-4)
    assert found.loss < sum(float(question.plain.nll) for question in questions) / 2


def test_an_answer_counts_as_right_when_every_token_is_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    assert Answer.read(logits, torch.tensor([1, 0])).right
    assert not Answer.read(logits, torch.tensor([1, 2])).right


def test_the_probability_is_that_of_the_whole_target() -> None:
    question = ask(tiny_model("gpt2"), QUICK)
    tokens = len(question.target_ids)
    assert tokens > 1
    expected = float(torch.exp(-question.plain.nll * tokens))
    assert question.plain.probability == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_numbers_that_are_not_finite_are_refused(layer: int) -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.weight(model.site(layer)).fill_(float("nan"))
    with pytest.raises(NonFiniteEditError, match="not finite"):
        ask(model, attrs.evolve(QUICK, layer=1))


def test_a_value_that_leaps_out_of_the_numbers_is_refused() -> None:
    question = ask(tiny_model("gpt2"), QUICK)
    params = attrs.evolve(QUICK, lr=1e37, lr_mode="absolute", steps=3)
    with pytest.raises(NonFiniteEditError, match="Lower lr"):
        optimise_value([question], None, params, 0, SilentProgress())


def test_half_precision_values_are_trained_in_float32() -> None:
    model = tiny_model("gpt2")
    model.model.to(torch.bfloat16)
    question = ask(model, QUICK)
    found = optimise_value([question], None, attrs.evolve(QUICK, steps=20), 0, SilentProgress())
    assert found.value.dtype == torch.float32
    assert not torch.equal(found.value, found.value.bfloat16().float())
    assert found.loss < float(question.plain.nll)
