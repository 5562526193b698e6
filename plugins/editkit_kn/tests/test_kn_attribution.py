"""Attribution to neurons, against full forward passes, finite differences and closed forms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from editkit_core import EditRequest
from editkit_core.models.editable import EditableModel
from editkit_core.models.orientation import out_in
from editkit_core.models.pairs import pair_row
from editkit_core.models.trace import record
from editkit_core.testing.models import TINY_ENCODER_DECODERS, TINY_FAMILIES, tiny_model
from editkit_core.types import Site
from editkit_kn.answers import Asked, answers_of, asked
from editkit_kn.attribution import Attribution, attribute, path_rule

PROMPT, ANSWER = "The capital of Norway is", "Oslo"
EVERY = sorted([*TINY_FAMILIES, *TINY_ENCODER_DECODERS])


def double(family: str) -> EditableModel:
    model = tiny_model(family)
    model.model.double()
    return model


def sites_of(model: EditableModel) -> list[Site]:
    return [model.site(layer, "last") for layer in range(model.n_layers)]


def text_of(model: EditableModel, prompt: str = PROMPT, answer: str = ANSWER) -> Asked:
    row = pair_row(model, prompt, answer)
    return Asked(source=row.source, ids=row.ids[: row.first], label=row.ids[row.first])


def one(model: EditableModel, text: Asked, nodes: int = 24) -> Attribution:
    return next(attribute(model, [text], sites_of(model), nodes=nodes))


def run(model: EditableModel, text: Asked) -> Tensor:
    """Return P(label) by a whole forward pass."""
    ids = torch.tensor([text.ids])
    if text.source:
        out = model.model(input_ids=torch.tensor([text.source]), decoder_input_ids=ids)
    else:
        out = model.model(input_ids=ids, use_cache=False)
    chances: Tensor = out.logits[0, -1].softmax(dim=0)[text.label]
    return chances


def with_neurons(
    model: EditableModel, text: Asked, site: Site, change: object, *, grad: bool = False
) -> Tensor:
    """Return P(label) with the last token's neurons passed through ``change``."""

    def put(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        new = torch.cat([args[0][:, :-1], change(args[0][:, -1:])], dim=1)  # type: ignore[operator]
        return (new, *args[1:])

    handle = model.module(site.module).register_forward_pre_hook(put)
    with torch.set_grad_enabled(grad):
        found = run(model, text)
    handle.remove()
    return found


@pytest.mark.parametrize("family", EVERY)
def test_completeness_all_architectures(family: str) -> None:
    """The sums are compared with whole forward passes with the layer's neurons at zero."""
    model = double(family)
    text = text_of(model)
    # ReLU makes the path bend, which Gauss nodes see only to first order.
    nodes, bound = (400, 2e-6) if family == "t5" else (64, 1e-9)
    made = one(model, text, nodes)
    for number, site in enumerate(sites_of(model)):
        with torch.no_grad():
            gone = run(model, text) - with_neurons(model, text, site, torch.zeros_like)
        assert float(made.scores[number].sum()) == pytest.approx(float(gone), abs=bound)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "t5_gated"])
def test_single_token_suffix_propagation_equals_full_forward(family: str) -> None:
    """Autograd through whole forward passes gives each neuron's score."""
    model = double(family)
    text = text_of(model)
    made = one(model, text, 4)
    points, weights = path_rule("gauss", 4)
    near = 1e-5 if family == "gptj" else 1e-9  # GPT-J's attention is in float32
    for number, site in enumerate(sites_of(model)):
        total = torch.zeros(made.scores.shape[1], dtype=torch.float64)
        with record(model.model, [site.module], inputs=True) as seen, torch.no_grad():
            run(model, text)
        a = seen[site.module][0, -1]
        for point, weight in zip(points, weights, strict=True):
            leaf = (point * a).clone().requires_grad_()
            chance = with_neurons(
                model, text, site, lambda _, leaf=leaf: leaf[None, None], grad=True
            )
            (slope,) = torch.autograd.grad(chance, [leaf])
            total += weight * slope
        torch.testing.assert_close(made.scores[number], a * total, rtol=near, atol=1e-3 * near)


def test_post_activation_site() -> None:
    """With a gate a neuron is the product of gate and value, and its column is what it writes."""
    model = double("llama")
    text = text_of(model)
    mlp = "model.layers.1.mlp"
    with record(model.model, [mlp], inputs=True) as seen, torch.no_grad():
        run(model, text)
    x = seen[mlp][0, -1]
    gate = out_in(model.module(f"{mlp}.gate_proj")) @ x
    value = out_in(model.module(f"{mlp}.up_proj")) @ x
    expected = torch.nn.functional.silu(gate) * value
    torch.testing.assert_close(one(model, text, 2).activations[1], expected.float())


def test_dead_relu_zero() -> None:
    model = double("t5")
    text = text_of(model)
    made = one(model, text)
    dead = made.activations == 0
    assert bool(dead.any())
    assert float(made.scores[dead].abs().max()) == 0.0
    assert float(made.scores[~dead].abs().max()) > 0.0


def test_permutation_equivariance() -> None:
    model = double("gpt2")
    text = text_of(model)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    shuffled = copy.deepcopy(model.model)
    mlp = shuffled.transformer.h[1].mlp
    mlp.c_fc.weight.data = mlp.c_fc.weight.data[:, order]
    mlp.c_fc.bias.data = mlp.c_fc.bias.data[order]
    mlp.c_proj.weight.data = mlp.c_proj.weight.data[order]
    other = EditableModel.wrap(shuffled, model.tokenizer)
    torch.testing.assert_close(one(other, text).scores[1], one(model, text).scores[1][order])
    torch.testing.assert_close(one(other, text).scores[0], one(model, text).scores[0])


def test_a_batch_of_texts_of_different_lengths_gives_what_each_gives_alone() -> None:
    model = double("gpt2")
    texts = [text_of(model), text_of(model, "Peru"), text_of(model, "In the old mill there is a")]
    together = list(attribute(model, texts, sites_of(model), nodes=6))
    for text, made in zip(texts, together, strict=True):
        torch.testing.assert_close(made.scores, one(model, text, 6).scores)


def test_points_are_doubled_until_the_sum_holds() -> None:
    """Logits times 30 make the probability a step on the path, which 4 points miss."""
    model = double("gpt2")
    model.model.transformer.ln_f.weight.data *= 30
    model.model.transformer.ln_f.bias.data *= 30
    text = text_of(model)
    with torch.no_grad():
        out = model.model(input_ids=torch.tensor([text.ids])).logits[0, -1]
    text = Asked(source=(), ids=text.ids, label=int(out.argmax()))
    few = next(attribute(model, [text], sites_of(model), nodes=4))
    more = next(attribute(model, [text], sites_of(model), nodes=4, tolerance=0.01))
    assert few.error > 0.01
    assert more.error <= 0.01


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("left", [0.0, 0.5]), ("midpoint", [0.25, 0.75]), ("right", [0.5, 1.0])],
)
def test_the_plain_rules_stand_where_their_names_say(rule: str, expected: list[float]) -> None:
    points, weights = path_rule(rule, 2)  # type: ignore[arg-type]  # one of the names
    assert points.tolist() == expected
    assert weights.tolist() == [0.5, 0.5]


def test_gauss_points_integrate_a_polynomial_of_degree_fifteen() -> None:
    points, weights = path_rule("gauss", 8)
    assert float((weights * points**15).sum()) == pytest.approx(1 / 16, abs=1e-14)


def test_the_first_token_that_counts_is_the_one_in_which_the_answers_differ() -> None:
    model = tiny_model("gpt2")
    request = EditRequest(
        prompt="The capital of {} is",
        subject="Norway",
        target_true="old Oslo",
        target_new="old Lima",
    )
    found = answers_of(model, request, "first")
    shared = len(model.encode_pair(request.text, "old").target_ids)
    assert found.first == shared
    assert found.old != found.new
    (text,) = asked(model, request.text, "old Oslo", found)
    assert text.ids == model.encode_pair(request.text, "old Oslo").ids[: len(text.ids)]
    assert text.label == found.old[0]


def test_all_tokens_of_an_answer_count_under_mean() -> None:
    model = tiny_model("gpt2")
    request = EditRequest(
        prompt="The capital of {} is", subject="Norway", target_true="old Oslo", target_new="Lima"
    )
    found = answers_of(model, request, "mean")
    ids = model.encode_pair(request.text, "old Oslo").target_ids
    assert found.old == ids
    assert [t.label for t in asked(model, request.text, "old Oslo", found)] == list(ids)
