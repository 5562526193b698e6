"""MEND's networks alone: normalisation, residual layers, which weights share what."""

from __future__ import annotations

import pytest
import torch

from editkit_core.errors import InvalidParameterError, LayerOutOfRangeError
from editkit_core.testing import tiny_model
from editkit_mend.network import FactorNetwork, ResidualLayer
from editkit_mend.networks import Networks
from editkit_mend.normaliser import Normaliser
from editkit_mend.params import MendParams
from editkit_mend.targets import targets


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(norm: str = "weight", places: int = 2) -> FactorNetwork:
    return FactorNetwork(
        d_out=5, d_in=3, places=places, rank=4, n_layers=2, norm=norm, generator=generator()
    )


# -- the normaliser ---------------------------------------------------------------------------


def test_statistics_in_parts_are_those_of_all_vectors_at_once() -> None:
    x = 7 + 3 * torch.randn(101, 6, generator=generator(), dtype=torch.float64)
    normaliser = Normaliser(6)
    for part in (x[:1], x[1:40], x[40:41], x[41:]):
        normaliser.update(part)
    assert torch.allclose(normaliser.mean, x.mean(dim=0), rtol=1e-12)
    assert torch.allclose(normaliser.deviation(), x.std(dim=0), rtol=1e-12)


def test_normalised_vectors_have_mean_0_and_deviation_1() -> None:
    x = 7 + 3 * torch.randn(50, 6, generator=generator())
    normaliser = Normaliser(6)
    normaliser.update(x)
    y = normaliser(x)
    assert torch.allclose(y.mean(dim=0), torch.zeros(6), atol=1e-5)
    assert torch.allclose(y.std(dim=0), torch.ones(6), atol=1e-5)
    assert y.dtype == torch.float32


@pytest.mark.parametrize("seen", [0, 1])
def test_fewer_than_two_vectors_normalise_nothing(seen: int) -> None:
    normaliser, x = Normaliser(3), torch.randn(2, 3, generator=generator())
    normaliser.update(x[:seen])
    assert torch.equal(normaliser(x), x)


@pytest.mark.parametrize("training", [True, False])
def test_using_a_network_does_not_change_its_statistics(training: bool) -> None:
    made = network().train(training)
    u, v = torch.randn(9, 3, generator=generator()), torch.randn(9, 5, generator=generator())
    made.observe(u, v, 0)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    made(2 * u, 3 * v, 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())


# -- the layers -------------------------------------------------------------------------------


def test_a_fresh_network_is_the_identity() -> None:
    made = network("none")
    u, v = torch.randn(4, 3, generator=generator()), torch.randn(4, 5, generator=generator())
    u_hat, v_hat = made(u, v, 1)
    assert torch.equal(u_hat, u)
    assert torch.equal(v_hat, v)


def test_a_layer_adds_what_is_above_zero_of_its_scaled_and_shifted_product() -> None:
    layer = ResidualLayer(2, 1, 2, generator())
    layer.load_state_dict(
        {
            "u": torch.tensor([[1.0], [-1.0]]),
            "v": torch.tensor([[2.0, 1.0]]),
            "bias": torch.tensor([0.5, 0.5]),
            "scale": torch.tensor([[1.0, 1.0], [2.0, 3.0]]),
            "offset": torch.tensor([[0.0, 0.0], [-1.0, 4.0]]),
        }
    )
    h = torch.tensor([[1.0, -1.0]])  # V h = 1, U V h + b = (1.5, -0.5)
    assert layer(h, 0).tolist() == [[2.5, -1.0]]
    assert layer(h, 1).tolist() == [[1.0 + 2.0, -1.0 + 2.5]]


def test_weights_of_one_shape_share_a_network_but_not_its_scales() -> None:
    model = tiny_model("gpt2")
    made = Networks.for_model(model, MendParams(rank=4), 0)
    assert sorted(made.networks) == ["128x32", "32x128"]
    layer = made.networks["128x32"].layers[0]
    assert layer.scale.shape == layer.offset.shape == (3, 160)


def test_unshared_networks_are_one_a_weight() -> None:
    made = Networks.for_model(tiny_model("gpt2"), MendParams(rank=4, shared=False), 0)
    assert len(made.networks) == 6


def test_square_weights_of_both_directions_share_a_network() -> None:
    made = Networks.for_model(tiny_model("gpt2", d_mlp=32), MendParams(rank=4), 0)
    assert list(made.networks) == ["32x32"]


@pytest.mark.parametrize(("norm", "count"), [("none", 0), ("shape", 1), ("weight", 3)])
def test_the_norm_says_what_shares_statistics(norm: str, count: int) -> None:
    made = Networks.for_model(tiny_model("gpt2"), MendParams(rank=4, norm=norm), 0)
    assert len(made.networks["128x32"].of_inputs) == count


def test_equal_seeds_make_equal_networks_and_leave_the_global_state() -> None:
    model, params = tiny_model("gpt2"), MendParams(rank=4)
    state = torch.get_rng_state()
    first, second = (Networks.for_model(model, params, 3).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = Networks.for_model(model, params, 4).state_dict()
    assert not torch.equal(first["networks.128x32.layers.0.v"], other["networks.128x32.layers.0.v"])


# -- the weights ------------------------------------------------------------------------------


def names(model_name: str, **params: object) -> list[str]:
    found = targets(tiny_model(model_name), MendParams(**params))  # type: ignore[arg-type]
    return [target.module for target in found]


def test_both_projections_of_the_last_blocks_are_edited() -> None:
    assert names("gpt2", blocks=2) == [
        "transformer.h.1.mlp.c_fc",
        "transformer.h.1.mlp.c_proj",
        "transformer.h.2.mlp.c_fc",
        "transformer.h.2.mlp.c_proj",
    ]


def test_layers_and_projections_can_be_named() -> None:
    found = names("llama", layers=[2, 0], projections=["down_proj"])
    assert found == ["model.layers.0.mlp.down_proj", "model.layers.2.mlp.down_proj"]


def test_an_encoder_decoder_is_edited_in_both_stacks() -> None:
    assert names("t5", blocks=1) == [
        "encoder.block.3.layer.1.DenseReluDense.wi",
        "encoder.block.3.layer.1.DenseReluDense.wo",
        "decoder.block.2.layer.2.DenseReluDense.wi",
        "decoder.block.2.layer.2.DenseReluDense.wo",
    ]


def test_a_stack_without_layers_is_left_alone() -> None:
    found = names("t5_gated", layers=[], encoder_layers=[0], projections=["wi_0", "wo"])
    assert found == [
        "encoder.block.0.layer.1.DenseReluDense.wi_0",
        "encoder.block.0.layer.1.DenseReluDense.wo",
    ]


def test_all_blocks_are_edited_where_blocks_is_none() -> None:
    assert len(names("gptj", blocks=None)) == 6


def test_an_unknown_projection_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidParameterError, match=r"c_fc, c_proj") as error:
        names("gpt2", projections=["up_proj"])
    assert error.value.parameter == "projections"


def test_no_block_at_all_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="give layers or blocks"):
        names("gpt2", layers=[])


def test_a_layer_the_model_lacks_is_refused() -> None:
    with pytest.raises(LayerOutOfRangeError):
        names("gpt2", layers=[7])
