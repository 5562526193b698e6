"""PMET on tiny random models."""

from __future__ import annotations

import attrs
import pytest
import torch

from editkit_core import EditContext, EditRequest, Patch
from editkit_core.models.editable import EditableModel
from editkit_core.models.trace import replace_output
from editkit_core.numerics.suffixes import Suffixes
from editkit_core.numerics.value_loss import Clean, Objective, ValueSettings
from editkit_core.numerics.value_opt import ValueJob, optimise_values
from editkit_core.numerics.value_rows import build_rows
from editkit_core.testing.models import TINY_FAMILIES, tiny_model
from editkit_pmet.delta import compute_delta
from editkit_pmet.locate import locate
from editkit_pmet.params import PmetParams

REQUESTS = (
    EditRequest(prompt="The capital of {} is", subject="Norway", target_new="old Lima"),
    EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru"),
)
CONTEXTS = ("", "The old mill. ")
SETTINGS = ValueSettings(steps=8, lr=0.1, kl_factor=0.0, attention=True)
PARAMS = PmetParams(
    layers=(0, 1), v_steps=6, covariance="identity", covariance_weight=0.5, contexts=((4, 2),)
)


def objective(model: EditableModel, layer: int = 1) -> Objective:
    site = model.site(layer)
    rows = build_rows(model, REQUESTS[0], site, CONTEXTS, kl_prompts=(), kl_position="subject_last")
    suffixes = Suffixes.split(model, rows.ids, rows.split)
    clean = Clean.read(site, rows, suffixes, attention=True)
    return Objective(
        site=site, rows=rows, upper=suffixes.above(layer - 1), clean=clean, settings=SETTINGS
    )


def gradients(model: EditableModel) -> tuple[torch.Tensor, torch.Tensor]:
    settings = attrs.evolve(SETTINGS, weight_decay=0.0)
    here = attrs.evolve(objective(model), settings=settings)
    parts = torch.zeros_like(here.clean.before, requires_grad=True)
    (grad,) = torch.autograd.grad(here(parts).loss.sum(), parts)
    return grad[0, 0], grad[0, 1]


def edit(model: EditableModel, **changes: object) -> Patch:
    params = attrs.evolve(PARAMS, **changes)
    context = EditContext()
    sites = locate(model, REQUESTS, params, context)
    return compute_delta(model, REQUESTS, sites, params, context)


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
@pytest.mark.parametrize("layer", [0, 1])
def test_the_loss_is_that_of_both_vectors_added_by_plain_hooks(family: str, layer: int) -> None:
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(0)
    mlp, attention = 0.3 * torch.randn(2, model.d_model, generator=generator)
    settings = attrs.evolve(SETTINGS, weight_decay=0.0)
    here = attrs.evolve(objective(model, layer), settings=settings)
    found = here(torch.stack([mlp, attention])[None]).loss[0]
    expected = torch.zeros(())
    for context in CONTEXTS:
        pair = model.encode_pair(context + REQUESTS[0].text, REQUESTS[0].target_new)
        at = model.subject_position(REQUESTS[0], prefix=context, target=REQUESTS[0].target_new)
        mark = torch.zeros(len(pair.ids), 1)
        mark[at] = 1.0
        with (
            torch.no_grad(),
            replace_output(
                model.model, model.family.attention(layer), lambda o, m=mark: o + m * attention
            ),
            replace_output(
                model.model, model.family.mlp_down(layer), lambda o, m=mark: o + m * mlp
            ),
        ):
            logs = model.model(input_ids=torch.tensor([pair.ids])).logits[0].log_softmax(-1)
        places = range(pair.n_prompt, len(pair.ids))
        nll = torch.stack([logs[t - 1, pair.ids[t]] for t in places]).mean()
        expected = expected - nll / len(CONTEXTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_parallel_block_gradients_equal() -> None:
    mlp, attention = gradients(tiny_model("gptj"))
    assert float((mlp - attention).norm() / mlp.norm()) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_sequential_block_gradients_differ(family: str) -> None:
    mlp, attention = gradients(tiny_model(family))
    assert float((mlp - attention).norm() / mlp.norm()) > 1e-3


def test_two_clamps() -> None:
    model = tiny_model("gpt2")
    settings = attrs.evolve(SETTINGS, lr=50.0, clamp_norm=0.5, steps=3)
    job = ValueJob(request=REQUESTS[0], site=model.site(1), contexts=CONTEXTS)
    found = optimise_values(model, [job], settings)[0]
    before = objective(model).clean.before[0].norm(dim=1)  # (parts,)
    assert found.attention is not None
    assert float(found.delta.norm()) == pytest.approx(0.5 * float(before[0]), rel=1e-4)
    assert float(found.attention.norm()) == pytest.approx(0.5 * float(before[1]), rel=1e-4)


def said(model: EditableModel) -> EditRequest:
    """A request for what the model says anyway."""
    text = model.generate([REQUESTS[0].text], max_new_tokens=1)[0]
    return attrs.evolve(REQUESTS[0], target_new=text.strip())


def test_argmax_stop() -> None:
    model = next(
        model
        for model in (tiny_model("gpt2", seed=seed) for seed in range(200))
        if (text := model.generate([REQUESTS[0].text], max_new_tokens=1)[0]).startswith(" ")
        and text.strip().isalpha()
        and len(model.encode_pair(REQUESTS[0].text, text.strip()).target_ids) == 1
    )
    job = ValueJob(request=said(model), site=model.site(1))
    rule = attrs.evolve(SETTINGS, loss_stop=0.0, said_kl_stop=0.01, said_damping=0.1)
    assert optimise_values(model, [job], rule)[0].updates == 0
    without = attrs.evolve(rule, said_kl_stop=None)
    assert optimise_values(model, [job], without)[0].updates == rule.steps - 1


def test_sqrt_factors() -> None:
    """With two layers the first one takes 1/√2 of what is missing."""
    model = tiny_model("gpt2")
    root, half = edit(model), edit(model, spread="linear")
    one, other = (patch.weight_entries[0].delta() for patch in (root, half))
    torch.testing.assert_close(one, other * 2**0.5, rtol=1e-4, atol=1e-6)


def test_the_written_value_is_the_feed_forwards_own() -> None:
    """With tiny λ the module gives its value after the edit of one layer."""
    model = tiny_model("gpt2")
    patch = edit(model, layers=(1,), covariance_weight=1e-6)
    assert max(patch.header.metrics["missing_left"]) < 0.2 * float(
        patch.header.metrics["layers"][0]["missing_mean"]
    )
    values = torch.tensor(patch.evidence[0].values)
    assert values.shape == (2, model.d_model)


def test_no_bos_in_target() -> None:
    model = tiny_model("llama", tokenizer="unigram")
    rows = build_rows(
        model, REQUESTS[0], model.site(1), ("",), kl_prompts=(), kl_position="subject_last"
    )
    assert model.tokenizer.bos_token_id not in rows.target.label.tolist()


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("gpt2")
    before = model.state_digest()
    edit(model)
    assert model.state_digest() == before
    assert not any(module._forward_hooks for module in model.model.modules())
