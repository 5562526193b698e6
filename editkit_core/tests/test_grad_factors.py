"""Gradient factors, checked by autograd with weights that do ask for a gradient."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from editkit_core.errors import (
    InvalidParameterError,
    ModuleNotFoundInModelError,
    NonFiniteEditError,
    UnsupportedModuleError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.models.orientation import to_out_in
from editkit_core.models.pairs import pair_batch
from editkit_core.numerics.grad_factors import GradFactors, grad_factors
from editkit_core.testing import tiny_model
from editkit_core.testing.models import TINY_ENCODER_DECODERS, TINY_FAMILIES

EVERY_FAMILY = (*TINY_FAMILIES, *TINY_ENCODER_DECODERS)
PAIRS = [
    ("The capital of Norway is", "Lima"),
    ("Marie Curie was born in the old town of", "Vienna"),
]


def projections(model: EditableModel) -> list[str]:
    """The projections of the last two blocks of every stack."""
    names = list(
        model.mlp_projections(model.n_layers - 2) + model.mlp_projections(model.n_layers - 1)
    )
    if model.is_encoder_decoder:
        last = model.n_encoder_layers - 1
        names += [
            *model.mlp_projections(last - 1, "encoder"),
            *model.mlp_projections(last, "encoder"),
        ]
    return names


def dense(factors: GradFactors) -> torch.Tensor:
    return factors.grads.double().T @ factors.inputs.double()  # (d_out, tokens) @ (tokens, d_in)


def by_autograd(
    model: EditableModel, pairs: list[tuple[str, str]], names: list[str]
) -> dict[str, torch.Tensor]:
    """Gradients (d_out, d_in) of the sum of rows' mean losses, one row after another."""
    weights = [model.parameter(f"{name}.weight") for name in names]
    for weight in weights:
        weight.requires_grad_(True)
    total = torch.zeros(())
    with torch.enable_grad():
        for pair in pairs:
            batch = pair_batch(model, [pair])
            logits = model.model(**batch.inputs, use_cache=False).logits
            total = total + torch.nn.functional.cross_entropy(logits[0], batch.labels[0])
        grads = torch.autograd.grad(total, weights)
    for weight in weights:
        weight.requires_grad_(False)
    return {
        name: to_out_in(model.module(name), grad) for name, grad in zip(names, grads, strict=True)
    }


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_factors_multiply_to_the_gradient_that_autograd_gives(family: str) -> None:
    model = tiny_model(family)
    model.model.double()
    names = projections(model)
    expected = by_autograd(model, PAIRS, names)
    found = grad_factors(model, pair_batch(model, PAIRS), names)
    for name in names:
        assert torch.allclose(dense(found[name]), expected[name].double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5_gated"])
def test_a_row_has_the_factors_it_has_alone(family: str) -> None:
    model = tiny_model(family)
    model.model.double()
    names = projections(model)
    together = grad_factors(model, pair_batch(model, PAIRS), names)
    for row, pair in enumerate(PAIRS):
        alone = grad_factors(model, pair_batch(model, [pair]), names)
        for name in names:
            of_row = together[name].where(together[name].rows == row)
            assert len(of_row) == len(alone[name])
            assert torch.allclose(of_row.inputs, alone[name].inputs, atol=1e-5)
            assert torch.allclose(of_row.grads, alone[name].grads, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama"])
def test_left_and_right_padding_give_the_same_factors(family: str) -> None:
    model = tiny_model(family)
    names = projections(model)
    right = grad_factors(model, pair_batch(model, PAIRS), names)
    left = grad_factors(model, pair_batch(model, PAIRS, "left"), names)
    for name in names:
        assert torch.equal(left[name].rows, right[name].rows)
        assert torch.allclose(left[name].inputs, right[name].inputs, atol=1e-5)
        assert torch.allclose(left[name].grads, right[name].grads, atol=1e-6)


def test_tokens_without_a_gradient_are_left_out() -> None:
    model = tiny_model("gpt2")
    batch = pair_batch(model, PAIRS)
    last = model.mlp_projections(model.n_layers - 1)[-1]
    found = grad_factors(model, batch, [last])[last]
    # Nothing reads the last block but the logits at the token itself.
    counted = [(int(row), int(column)) for row, column in (batch.labels != -100).nonzero()]
    assert list(zip(found.rows.tolist(), found.positions.tolist(), strict=True)) == counted


class Shapes(TorchDispatchMode):
    """Records what is computed, but for views of what is there already."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.made: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if not isinstance(tensor, torch.Tensor) or not tensor.numel():
                continue
            if tensor.untyped_storage().data_ptr() not in self.known:
                self.made.add(tuple(tensor.shape))
        return out


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_no_matrix_of_a_weights_shape_is_ever_made(family: str) -> None:
    model = tiny_model(family, d=48, d_mlp=176)
    names = projections(model)
    batch = pair_batch(model, PAIRS)
    stored = {p.untyped_storage().data_ptr() for p in model.model.parameters()}
    with Shapes(stored) as shapes:
        grad_factors(model, batch, names)
    sides = {tuple(model.parameter(f"{name}.weight").shape) for name in names}
    assert not shapes.made & (sides | {side[::-1] for side in sides})


def test_the_recorder_of_shapes_sees_a_weights_gradient() -> None:
    model = tiny_model("gpt2", d=48, d_mlp=176)
    names = projections(model)
    stored = {p.untyped_storage().data_ptr() for p in model.model.parameters()}
    with Shapes(stored) as shapes:
        by_autograd(model, PAIRS, names)
    assert (48, 176) in shapes.made


def test_layers_below_the_first_projection_keep_nothing_for_the_backward_pass() -> None:
    model = tiny_model("gpt2")
    seen: dict[str, bool] = {}
    for layer in range(model.n_layers):
        block = model.family.block(layer)
        model.module(block).register_forward_hook(
            lambda _, __, out, name=block: seen.update({name: out.requires_grad})
        )
    grad_factors(model, pair_batch(model, PAIRS), [model.mlp_projections(1)[-1]])
    assert list(seen.values()) == [False, True, True]


def test_nothing_of_the_model_changes() -> None:
    model = tiny_model("gpt2")
    watched = model.parameter("transformer.h.2.mlp.c_fc.weight").requires_grad_(True)
    model.model.train()
    before, random = model.state_digest(), torch.get_rng_state()
    grad_factors(model, pair_batch(model, PAIRS), projections(model))
    assert model.state_digest() == before
    assert watched.requires_grad
    assert watched.grad is None
    assert model.model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks for m in model.model.modules())


def test_gradients_are_taken_where_they_are_switched_off() -> None:
    model = tiny_model("gpt2")
    name = model.mlp_projections(2)[-1]
    batch = pair_batch(model, PAIRS)
    expected = grad_factors(model, batch, [name])[name].grads
    with torch.no_grad():
        assert torch.equal(grad_factors(model, batch, [name])[name].grads, expected)


def test_half_precision_gives_float32_factors() -> None:
    model = tiny_model("llama")
    model.model.to(torch.bfloat16)
    name = model.mlp_projections(2)[-1]
    found = grad_factors(model, pair_batch(model, PAIRS), [name])[name]
    assert found.inputs.dtype == found.grads.dtype == torch.float32


def test_the_side_path_of_another_hook_does_not_count_as_the_weights_output() -> None:
    model = tiny_model("gpt2")
    name = model.mlp_projections(1)[-1]
    handle = model.module(name).register_forward_hook(lambda _, __, out: 2 * out)
    expected = by_autograd(model, PAIRS, [name])[name]
    found = grad_factors(model, pair_batch(model, PAIRS), [name])[name]
    handle.remove()
    assert torch.allclose(dense(found).float(), expected, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    model = tiny_model("gpt2")
    model.parameter("transformer.ln_f.weight").data[0] = float("nan")
    with pytest.raises(NonFiniteEditError, match="c_proj"):
        grad_factors(model, pair_batch(model, PAIRS), [model.mlp_projections(2)[-1]])


@pytest.mark.parametrize("names", [[], ["transformer.h.0.mlp.c_fc"] * 2])
def test_modules_must_be_named_once(names: list[str]) -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InvalidParameterError, match="each once"):
        grad_factors(model, pair_batch(model, PAIRS), names)


def test_a_module_that_is_no_projection_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(UnsupportedModuleError):
        grad_factors(model, pair_batch(model, PAIRS), ["transformer.h.0.mlp"])


def test_an_unknown_module_is_refused_and_no_hook_stays() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(ModuleNotFoundInModelError):
        grad_factors(
            model,
            pair_batch(model, PAIRS),
            ["transformer.h.0.mlp.c_fc", "transformer.h.9.mlp.c_fc"],
        )
    assert not any(m._forward_hooks for m in model.model.modules())
