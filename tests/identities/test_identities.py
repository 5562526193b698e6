"""Identities between methods that papers state, on whole methods and on their solves."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from editkit_alphaedit.delta import protected_change
from editkit_core import EditContext, EditRequest, Patch
from editkit_core.numerics.batch_solve import batch_change
from editkit_core.numerics.covariance import Covariance
from editkit_core.numerics.solve import factor_spd
from editkit_core.numerics.window_change import System
from editkit_core.numerics.window_params import WindowParams
from editkit_core.testing.models import TINY_FAMILIES, tiny_model
from editkit_core.types import Site
from editkit_emmet.delta import compute_delta as emmet
from editkit_emmet.delta import constrained_change
from editkit_emmet.params import EmmetParams
from editkit_memit.delta import compute_delta as memit
from editkit_memit.params import MemitParams
from editkit_pmet.delta import compute_delta as pmet
from editkit_pmet.params import PmetParams
from editkit_rome.rank_one import direction

D_IN, D_OUT = 24, 9
SITE = Site(module="m", parameter="m.weight", layer=0)
REQUESTS = (
    EditRequest(prompt="The capital of {} is", subject="Norway", target_new="old Lima"),
    EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru"),
)
WINDOW = {"layers": (0, 1), "v_steps": 4, "contexts": ((4, 2),), "covariance_ridge": 1e-3}


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def covariance() -> Covariance:
    seen = numbers(D_IN, 90, seed=8)
    return Covariance(factor=factor_spd(seen @ seen.T / 90), origin={})


def rome_change(key: Tensor, missing: Tensor) -> Tensor:
    update = direction(key=key, covariance=covariance()).carrying(missing)
    return update.u.double() @ update.v.double()


def system(n: int = 1) -> System:
    return System(
        site=SITE,
        keys=numbers(D_IN, n, seed=1),
        residuals=numbers(D_OUT, n, seed=2),
        covariance=covariance(),
    )


def test_emmet_with_one_edit_is_rome() -> None:
    one = system()
    change, _ = constrained_change(one, EmmetParams(slack=0.0))
    expected = rome_change(one.keys[:, 0], one.residuals[:, 0])
    torch.testing.assert_close(change.u @ change.v, expected, rtol=1e-5, atol=1e-7)  # float32


def test_memit_with_one_edit_is_rome_shrunk() -> None:
    one, c = system(), covariance()
    key = one.keys[:, 0]
    kappa = float(key @ c.solve(key))
    for weight in (0.1, 30.0):
        change = batch_change(one.keys, one.residuals, c, weight=weight)
        expected = rome_change(key, one.residuals[:, 0]) * kappa / (weight + kappa)
        torch.testing.assert_close(change.u @ change.v, expected, rtol=1e-5, atol=1e-7)


def test_memit_without_weight_is_emmet() -> None:
    many = system(n=5)
    change, _ = constrained_change(many, EmmetParams(slack=0.0))
    limit = batch_change(many.keys, many.residuals, many.covariance, weight=1e-12)
    torch.testing.assert_close(limit.u @ limit.v, change.u @ change.v, rtol=1e-8, atol=1e-10)


def test_alphaedit_without_projection_and_history_is_memit_without_statistics() -> None:
    identity = Covariance(factor=None, origin={})
    keys, missing = numbers(D_IN, 4, seed=1), numbers(D_OUT, 4, seed=2)
    none = torch.zeros(0, 0, dtype=torch.float64)
    ours = protected_change(keys, missing, none, identity, 3.0)
    theirs = batch_change(keys, missing, identity, weight=3.0)
    torch.testing.assert_close(ours.u @ ours.v, theirs.u @ theirs.v, rtol=1e-12, atol=1e-12)


# -- whole methods -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


def deltas(patch: Patch) -> list[Tensor]:
    return [entry.delta() for entry in patch.weight_entries]


def equal(one: Patch, other: Patch) -> None:
    for a, b in zip(deltas(one), deltas(other), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5


def run(compute: object, family: str, params: WindowParams, folder: Path) -> Patch:
    model = tiny_model(family)
    sites = tuple(model.site(layer) for layer in params.window(model.n_layers))
    context = EditContext(statistics_dir=folder)
    return compute(model, REQUESTS, sites, params, context)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_emmet_is_memit_with_the_product_of_its_factors(family: str, folder: Path) -> None:
    one = run(emmet, family, EmmetParams(slack=0.2, covariance_weight=5.0, **WINDOW), folder)
    other = run(memit, family, MemitParams(covariance_weight=1.0, **WINDOW), folder)
    equal(one, other)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_pmet_without_attention_values_is_memit_at_one_layer(family: str, folder: Path) -> None:
    window = {**WINDOW, "layers": (1,), "v_weight_decay": 0.0}
    shared = {"spread": "linear", "covariance_weight": 1.0, **window}
    plain = {"attention_values": False, "said_damping": 1.0, "said_kl_stop": None}
    one = run(pmet, family, PmetParams(**plain, **shared), folder)  # type: ignore[arg-type]
    other = run(memit, family, MemitParams(**shared), folder)  # type: ignore[arg-type]
    equal(one, other)


def test_the_parameters_shared_by_the_family_are_the_same_fields() -> None:
    shared = {field.name for field in attrs.fields(WindowParams)}
    for params in (MemitParams, EmmetParams, PmetParams):
        assert shared <= {field.name for field in attrs.fields(params)}
