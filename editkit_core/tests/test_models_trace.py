"""Outputs and inputs of modules can be read and replaced, tensor or tuple."""

import pytest
import torch
from torch import nn

from editkit_core.errors import ModuleNotFoundInModelError, UnsupportedModuleError
from editkit_core.models.text import pad_batch
from editkit_core.models.trace import record, replace_output
from editkit_core.testing import TINY_FAMILIES, tiny_model


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def batch(model):
    return pad_batch([model.encode("The capital of Norway is").ids], model.pad_id)


def hooks_of(model):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in model.model.modules()
    )


def test_recorded_block_outputs_are_the_models_hidden_states(model, batch):
    names = [model.family.block(layer) for layer in range(model.n_layers)]
    with record(model.model, names) as states:
        model.logits(batch)
    expected = model.model(**batch.inputs(), output_hidden_states=True).hidden_states
    for layer, name in enumerate(names[:-1]):
        assert torch.equal(states[name], expected[layer + 1])
    final = model.module(model.family.final_norm)(states[names[-1]])
    assert torch.allclose(final, expected[-1], atol=1e-6)


def test_recorded_input_times_weight_is_the_recorded_output(model, batch):
    site = model.site(1)
    with record(model.model, [site.module], inputs=True) as keys:
        model.logits(batch)
    with record(model.model, [site.module]) as values:
        model.logits(batch)
    bias = getattr(model.module(site.module), "bias", None)
    expected = keys[site.module] @ model.weight(site).T  # (1, len, d_mlp) (d_mlp, d)
    expected = expected if bias is None else expected + bias
    assert torch.allclose(values[site.module], expected, atol=1e-5)


def test_the_input_of_a_block_called_with_keywords_is_found(model, batch):
    names = [model.family.attention(0), model.family.block(1)]
    with record(model.model, names, inputs=True) as states:
        model.logits(batch)
    width = (1, batch.input_ids.shape[1], model.d_model)
    assert all(states[name].shape == width for name in names)


def test_stop_ends_the_forward_after_the_last_named_module(model, batch):
    names = [model.family.mlp_down(0), model.family.mlp_down(1)]
    later = []
    handle = model.module(model.family.block(2)).register_forward_pre_hook(
        lambda *_: later.append(1)
    )
    reached_end = False
    with record(model.model, names, stop=True) as states:
        model.logits(batch)
        reached_end = True
    handle.remove()
    assert set(states) == set(names)
    assert not later
    assert not reached_end
    with record(model.model, names) as full:
        model.logits(batch)
    assert all(torch.equal(states[name], full[name]) for name in names)


def test_stop_on_an_input_ends_before_the_module_runs(model, batch):
    name = model.family.mlp_down(1)
    ran = []
    handle = model.module(name).register_forward_hook(lambda *_: ran.append(1))
    with record(model.model, [name], inputs=True, stop=True) as states:
        model.logits(batch)
    handle.remove()
    assert name in states
    assert not ran


def test_stop_works_with_gradients_enabled_and_leaves_the_model_usable(model, batch):
    before = model.logits(batch)
    with record(model.model, [model.family.block(0)], stop=True):
        model.model(**batch.inputs())
    assert torch.equal(model.logits(batch), before)


def test_nested_records_each_stop_only_themselves(model, batch):
    outer_name, inner_name = model.family.block(2), model.family.block(0)
    with record(model.model, [outer_name], stop=True) as outer:
        with record(model.model, [inner_name], stop=True) as inner:
            model.logits(batch)
        assert set(inner) == {inner_name}
        model.logits(batch)
    assert set(outer) == {outer_name}


def test_recorded_tensors_are_detached_unless_asked(model, batch):
    name = model.family.block(1)

    def lift(hidden):
        return hidden.clone().requires_grad_(True)

    for grad in (False, True):
        with (
            torch.enable_grad(),
            replace_output(model.model, model.family.block(0), lift),
            record(model.model, [name], grad=grad) as states,
        ):
            model.model(**batch.inputs())
        assert states[name].requires_grad is grad


@pytest.mark.parametrize("part", ["embedding", "block", "attention", "mlp", "mlp_down"])
def test_a_replaced_output_changes_the_logits(model, batch, part):
    name = model.family.embedding if part == "embedding" else getattr(model.family, part)(1)
    before = model.logits(batch)
    with replace_output(model.model, name, lambda hidden: hidden + 1.0 + hidden.flip(-1)):
        changed = model.logits(batch)
    assert not torch.allclose(changed, before, atol=1e-2)
    assert torch.equal(model.logits(batch), before)


def test_a_replaced_output_arrives_at_the_next_block(model, batch):
    new = torch.randn(1, batch.input_ids.shape[1], model.d_model)
    with (
        record(model.model, [model.family.block(1)], inputs=True) as states,
        replace_output(model.model, model.family.block(0), lambda _: new),
    ):
        model.logits(batch)
    assert torch.equal(states[model.family.block(1)], new)


def test_the_same_output_put_back_changes_nothing(model, batch):
    before = model.logits(batch)
    for part in (model.family.block, model.family.attention, model.family.mlp):
        with replace_output(model.model, part(1), lambda hidden: hidden.clone()):
            assert torch.equal(model.logits(batch), before)


def test_a_delta_at_the_down_projection_equals_one_at_the_block(model, batch):
    delta = torch.randn(model.d_model)
    with replace_output(model.model, model.family.mlp_down(1), lambda hidden: hidden + delta):
        at_down = model.logits(batch)
    with replace_output(model.model, model.family.block(1), lambda hidden: hidden + delta):
        at_block = model.logits(batch)
    assert torch.allclose(at_down, at_block, atol=1e-4)


def test_hooks_are_gone_after_success_stop_and_failure(model, batch):
    before = hooks_of(model)  # transformers keeps some of its own
    name = model.family.block(0)
    with record(model.model, [name], stop=True):
        model.logits(batch)
    with pytest.raises(ZeroDivisionError), record(model.model, [name]):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), replace_output(model.model, name, lambda _: 1 / 0):
        model.logits(batch)
    with pytest.raises(ModuleNotFoundInModelError), record(model.model, [name, "nowhere"]):
        pass
    assert hooks_of(model) == before


def test_an_unknown_name_is_refused_with_a_suggestion(model):
    wrong = model.family.block(0) + "x"
    with (
        pytest.raises(ModuleNotFoundInModelError, match="Did you mean"),
        record(model.model, [wrong]),
    ):
        pass
    with (
        pytest.raises(ModuleNotFoundInModelError, match="Did you mean"),
        replace_output(model.model, wrong, lambda hidden: hidden),
    ):
        pass


class ReturnsADict(nn.Module):
    def forward(self, _):
        return {"hidden": 1}


class ReturnsAPair(nn.Module):
    def forward(self, hidden):
        return hidden, "cache"


def test_the_rest_of_a_tuple_and_its_type_are_kept():
    root = nn.Sequential(ReturnsAPair())
    with replace_output(root, "0", lambda hidden: hidden * 2):
        out = root(torch.ones(2))
    assert isinstance(out, tuple)
    assert out[1] == "cache"
    assert torch.equal(out[0], torch.full((2,), 2.0))


def test_a_module_that_returns_no_tensor_is_refused():
    root = nn.Sequential(ReturnsADict())
    with (
        pytest.raises(UnsupportedModuleError, match="returns a dict"),
        record(root, ["0"]),
    ):
        root(torch.ones(2))
    with (
        pytest.raises(UnsupportedModuleError, match="without a tensor"),
        record(root, ["0"], inputs=True),
    ):
        root("text")
