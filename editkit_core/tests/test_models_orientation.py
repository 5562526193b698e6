"""A weight is (d_out, d_in) by the module's type, also where its shape says nothing."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from editkit_core.errors import UnsupportedModuleError
from editkit_core.models.orientation import out_in, sides, to_native, to_out_in
from editkit_core.testing import TINY_FAMILIES, tiny_model


@pytest.mark.parametrize("d_mlp", [32, 80], ids=["square", "oblong"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_weight_maps_the_modules_input_to_its_output(family, d_mlp):
    model = tiny_model(family, d_mlp=d_mlp)
    site = model.site(1)
    module = model.module(site.module)
    key = torch.randn(5, d_mlp, generator=torch.Generator().manual_seed(0))
    bias = module.bias if getattr(module, "bias", None) is not None else 0.0
    value = key @ model.weight(site).T + bias  # (5, d_mlp) (d_mlp, d)
    assert model.weight(site).shape == (32, d_mlp)
    assert torch.allclose(value, module(key), atol=1e-5)


@pytest.mark.parametrize("module", [Conv1D(4, 4), nn.Linear(4, 4)], ids=["Conv1D", "Linear"])
def test_a_native_delta_adds_what_its_out_in_form_says(module):
    delta = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    key = torch.arange(4.0)
    with torch.no_grad():
        before = module(key[None])
        module.weight += to_native(module, delta)
        after = module(key[None])
    assert torch.allclose(after - before, (delta @ key)[None], atol=1e-5)


@pytest.mark.parametrize("module", [Conv1D(3, 5), nn.Linear(5, 3)], ids=["Conv1D", "Linear"])
def test_to_native_and_to_out_in_undo_each_other(module):
    assert sides(module) == (3, 5)
    delta = torch.randn(3, 5)
    assert to_native(module, delta).shape == module.weight.shape
    assert torch.equal(to_out_in(module, to_native(module, delta)), delta)


@pytest.mark.parametrize("module", [Conv1D(3, 5), nn.Linear(5, 3)], ids=["Conv1D", "Linear"])
def test_the_weight_is_a_view(module):
    with torch.no_grad():
        out_in(module).fill_(7.0)
    assert bool((module.weight == 7.0).all())


def test_another_kind_of_module_is_refused_by_name():
    with pytest.raises(UnsupportedModuleError, match="Embedding"):
        out_in(nn.Embedding(3, 3))
    with pytest.raises(UnsupportedModuleError, match="Embedding"):
        to_native(nn.Embedding(3, 3), torch.zeros(3, 3))


def test_a_packed_weight_is_refused_with_the_remedy():
    module = nn.Linear(4, 4)
    packed = torch.zeros(8, 1, dtype=torch.uint8)
    module.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(UnsupportedModuleError, match=r"quantised.*overlay"):
        out_in(module)
