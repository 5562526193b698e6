"""FT on tiny random models."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from editkit_core import EditContext, EditRequest, Patch
from editkit_core.errors import InvalidParameterError, InvalidRequestError, NonFiniteEditError
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import pair_batch, pair_logits
from editkit_core.numerics.probability import target_probabilities
from editkit_core.patch.apply import apply_patch
from editkit_core.testing.models import TINY_ENCODER_DECODERS, TINY_FAMILIES, tiny_model
from editkit_ft.delta import compute_delta
from editkit_ft.locate import locate
from editkit_ft.params import FtParams
from editkit_ft.training import batch_loss, train

ALL = (*sorted(TINY_FAMILIES), *sorted(TINY_ENCODER_DECODERS))
LONG = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="old Lima")
OTHER = EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru")
PARAMS = FtParams(layers=(1,), steps=4, lr=1e-3, loss_skip=0.0, loss_stop=0.0)


def edit(
    model: EditableModel,
    *requests: EditRequest,
    context: EditContext | None = None,
    **changes: object,
) -> Patch:
    params = attrs.evolve(PARAMS, **changes)
    context = context or EditContext()
    asked = requests or (LONG, OTHER)
    return compute_delta(model, asked, locate(model, asked, params, context), params, context)


def delta(patch: Patch) -> Tensor:
    return patch.weight_entries[0].delta()


def by_plain_training(model: EditableModel, params: FtParams) -> Tensor:
    """Adam on a copy of the model's own parameter; transformers' own shift of the labels."""
    module = model.module(model.site(1).module)
    start = model.weight(model.site(1)).detach().clone()
    parameter = nn.Parameter(module.weight.detach().clone())
    before = module.weight
    module.weight = parameter
    adam = torch.optim.Adam([parameter], lr=params.lr, weight_decay=params.weight_decay)
    for _ in range(params.steps):
        losses = []
        for request in (LONG, OTHER):
            if model.is_encoder_decoder:
                source = torch.tensor([model.tokenizer(request.text)["input_ids"]])
                labels = torch.tensor([model.tokenizer(request.target_new)["input_ids"]])
                losses.append(model.model(input_ids=source, labels=labels).loss)
            else:
                pair = model.encode_pair(request.text, request.target_new)
                labels = torch.tensor([pair.ids])
                given = labels.clone()
                labels[0, : pair.n_prompt] = -100
                losses.append(model.model(input_ids=given, labels=labels).loss)
        adam.zero_grad()
        torch.stack(losses).mean().backward()
        adam.step()
    module.weight = before
    trained = parameter.detach()
    return (trained.T if trained.shape != start.shape else trained) - start


@pytest.mark.parametrize("family", ALL)
def test_the_change_is_that_of_plain_training(family: str) -> None:
    model = tiny_model(family)
    trained = edit(model)
    expected = by_plain_training(tiny_model(family), PARAMS)
    torch.testing.assert_close(delta(trained).float(), expected, rtol=2e-2, atol=2e-5)


@pytest.mark.parametrize("linf", [5e-4, 1e-2])
def test_linf_bound(linf: float) -> None:
    found = edit(tiny_model("gpt2"), linf=linf, lr=0.1)
    assert float(delta(found).abs().max()) == pytest.approx(linf, rel=1e-3)


def test_zero_eps_noop() -> None:
    with pytest.raises(InvalidRequestError, match="linf leaves no room"):
        edit(tiny_model("gpt2"), linf=0.0)


def test_integer_eps_not_ignored() -> None:
    """A bound of 1, an integer, binds."""
    found = edit(tiny_model("gpt2"), linf=1, lr=5.0)
    assert float(delta(found).abs().max()) <= 1 + 1e-6


def test_a_bound_that_is_a_text_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="linf is '5e-4'"):
        FtParams(linf="5e-4")  # type: ignore[arg-type]  # on purpose


def test_t1_objectives_equal() -> None:
    model = tiny_model("gpt2")
    one = next(
        word
        for word in ("Peru", "Lima", "mill", "river", "a", "the", "is", "king")
        if len(model.encode_pair(OTHER.text, word).target_ids) == 1
    )
    request = attrs.evolve(OTHER, target_new=one)
    last, new = (edit(model, request, objective=o) for o in ("prompt_last", "target_new"))
    torch.testing.assert_close(delta(last), delta(new), rtol=0, atol=0)


def test_multi_token_prompt_last_reads_every_token_where_the_first_is_predicted() -> None:
    model = tiny_model("gpt2")
    batch = pair_batch(model, [(LONG.text, LONG.target_new)], end=True)
    pair = model.encode_pair(LONG.text, LONG.target_new)
    with torch.no_grad():
        logs = model.model(input_ids=torch.tensor([pair.ids])).logits[0].log_softmax(-1)
        found = batch_loss(
            pair_logits(model, batch), batch, attrs.evolve(PARAMS, objective="prompt_last")
        )
    expected = -torch.stack([logs[pair.n_prompt - 1, t] for t in pair.target_ids]).mean()
    assert len(pair.target_ids) > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", ["prompt_last", "target_new"])
def test_left_padding(objective: str) -> None:
    model = tiny_model("gpt2")
    params = attrs.evolve(PARAMS, objective=objective)
    pairs = [(LONG.text, LONG.target_new), (OTHER.text, OTHER.target_new)]
    losses = []
    for side in ("left", "right"):
        batch = pair_batch(model, pairs, side)  # type: ignore[arg-type]  # one of two words
        with torch.no_grad():
            losses.append(float(batch_loss(pair_logits(model, batch), batch, params)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_target_that_holds_the_padding_token_counts_whole() -> None:
    model = tiny_model("gpt2")
    pad = model.tokenizer.decode([model.pad_id])
    batch = pair_batch(model, [("The king", f"Peru {pad}"), ("The king of Norway", "Peru")])
    with torch.no_grad():
        logits = pair_logits(model, batch)
        found = batch_loss(logits, batch, PARAMS)
    rows = []
    for row, logit in zip(batch.rows, logits, strict=True):
        wanted = torch.tensor(row.target)
        rows.append(cross_entropy(logit[row.first - 1 : len(row.ids) - 1], wanted))
    torch.testing.assert_close(found, torch.stack(rows).mean(), rtol=1e-5, atol=1e-6)


def test_t5_shift() -> None:
    """An untrained model does not know the target: its loss is near the log of the vocabulary."""
    model = tiny_model("t5")
    batch = pair_batch(model, [(LONG.text, LONG.target_new)], end=True)
    with torch.no_grad():
        found = float(batch_loss(pair_logits(model, batch), batch, PARAMS))
    labels = torch.tensor([model.tokenizer(LONG.target_new)["input_ids"]])
    source = torch.tensor([model.tokenizer(LONG.text)["input_ids"]])
    with torch.no_grad():
        theirs = float(model.model(input_ids=source, labels=labels).loss)
    assert found == pytest.approx(theirs, rel=1e-4)
    assert found > 1.0


@pytest.mark.parametrize("family", ALL)
def test_the_model_and_its_flags_are_left_as_they_were(family: str) -> None:
    model = tiny_model(family)
    model.model.train()
    before, state = model.state_digest(), torch.get_rng_state()
    edit(model)
    assert model.state_digest() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.model.parameters())
    assert not any(module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_only_selected_tensors_change_and_the_edit_holds(family: str) -> None:
    model = tiny_model(family)
    untouched = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    before = target_probabilities(model, [LONG, OTHER])
    patch = edit(model, steps=120, lr=3e-3)
    with apply_patch(model, patch):
        changed = [
            name
            for name, parameter in model.model.named_parameters()
            if not torch.equal(parameter, untouched[name])
        ]
        chances = target_probabilities(model, [LONG, OTHER])
    assert changed == [model.site(1).parameter]
    # A tiny model's logits are bounded by its norm, so no token can come near 1.
    assert all(after > 50 * old for after, old in zip(chances, before, strict=True))
    losses = patch.header.metrics["losses"]
    assert losses[-1] < losses[0] * 0.6


def test_a_loss_below_the_skip_trains_nothing_and_says_so() -> None:
    with pytest.raises(InvalidRequestError, match="loss_skip=100"):
        edit(tiny_model("gpt2"), loss_skip=100.0)


@pytest.mark.parametrize("mode", ["merge", "overlay"])
def test_the_bound_can_be_measured_from_the_base(mode: str) -> None:
    model = tiny_model("gpt2")
    first = edit(model, LONG, lr=0.1, linf=1e-3)
    with apply_patch(model, first, mode=mode):
        again = edit(model, OTHER, lr=0.1, linf=1e-3, anchor="base")
        drifting = edit(model, OTHER, lr=0.1, linf=1e-3)
    held = (delta(first) + delta(again)).abs().max()
    free = (delta(first) + delta(drifting)).abs().max()
    if mode == "merge":
        assert float(held) <= 1e-3 * 1.001
    assert float(free) > 1.5e-3


def test_a_rate_that_explodes_is_told() -> None:
    with pytest.raises(NonFiniteEditError, match="learning rate lr"):
        edit(tiny_model("gpt2"), lr=1e30, steps=4)


def test_the_small_steps_lower_the_loss() -> None:
    model = tiny_model("gpt2")
    sites = (model.site(1),)
    params = attrs.evolve(PARAMS, lr=1e-5, steps=3)
    losses = train(model, (LONG, OTHER), sites, params, EditContext()).losses
    assert list(losses) == sorted(losses, reverse=True)
