"""EMMET's solve: exact values, the identities with ROME and MEMIT, and dependent keys."""

from __future__ import annotations

import logging

import attrs
import pytest
import torch
from torch import Tensor

from editkit_core import EditContext, EditRequest
from editkit_core.errors import IllConditionedError
from editkit_core.numerics.covariance import Covariance
from editkit_core.numerics.solve import factor_spd
from editkit_core.numerics.window_change import System
from editkit_core.testing.models import tiny_model
from editkit_core.types import Site
from editkit_emmet.delta import compute_delta, constrained_change
from editkit_emmet.locate import locate
from editkit_emmet.params import EmmetParams

SITE = Site(module="m", parameter="m.weight", layer=0)


def system(n: int = 4, d_in: int = 20, d_out: int = 9) -> tuple[System, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    seen = draw(d_in, 80)
    c = seen @ seen.T / 80
    covariance = Covariance(factor=factor_spd(c), origin={})
    return System(site=SITE, keys=draw(d_in, n), residuals=draw(d_out, n), covariance=covariance), c


def test_equality_constraint() -> None:
    wanted, _ = system()
    change, weight = constrained_change(wanted, EmmetParams(slack=0.0))
    assert weight == 0
    torch.testing.assert_close(change.on(wanted.keys), wanted.residuals, rtol=1e-9, atol=1e-9)


def test_e1_is_rome() -> None:
    wanted, c = system(n=1)
    change, _ = constrained_change(wanted, EmmetParams(slack=0.0))
    direction = torch.linalg.solve(c, wanted.keys)
    rome = wanted.residuals @ direction.T / float(wanted.keys.T @ direction)
    torch.testing.assert_close(change.u @ change.v, rome, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("slack", "weight"), [(0.1, 1000.0), (2.0, 0.5)])
def test_lambda_e_is_memit(slack: float, weight: float) -> None:
    """The authors' formula with both factors, and the direct form of MEMIT with their product."""
    wanted, c = system()
    params = EmmetParams(slack=slack, covariance_weight=weight)
    change, effective = constrained_change(wanted, params)
    k, r = wanted.keys, wanted.residuals
    scaled = torch.linalg.inv(weight * c)
    theirs = r @ torch.linalg.solve(k.T @ scaled @ k + slack * torch.eye(4).double(), k.T @ scaled)
    memit = torch.linalg.solve(slack * weight * c + k @ k.T, (r @ k.T).T).T
    assert effective == slack * weight
    torch.testing.assert_close(change.u @ change.v, theirs, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(change.u @ change.v, memit, rtol=1e-8, atol=1e-11)


def test_duplicate_conflict_raises() -> None:
    wanted, _ = system()
    keys = wanted.keys.clone()
    keys[:, 3] = keys[:, 0]
    with pytest.raises(IllConditionedError, match="edits 0 and 3"):
        constrained_change(
            attrs.evolve(wanted, keys=keys), EmmetParams(slack=0.0, slack_when_needed=0.0)
        )


def test_nearly_equal_keys_are_met_with_slack_and_it_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted, _ = system()
    keys = wanted.keys.clone()
    keys[:, 3] = keys[:, 0] * (1 + 1e-9)
    with caplog.at_level(logging.WARNING, logger="editkit"):
        change, weight = constrained_change(
            attrs.evolve(wanted, keys=keys), EmmetParams(slack=0.0, covariance_weight=2.0)
        )
    assert weight == pytest.approx(0.2)
    assert "edits 0 and 3" in caplog.text
    assert bool(torch.isfinite(change.v).all())


def test_cached_tensor_not_mutated() -> None:
    wanted, _ = system()
    assert wanted.covariance.factor is not None
    before = wanted.covariance.factor.lower.clone()
    constrained_change(wanted, EmmetParams())
    assert torch.equal(wanted.covariance.factor.lower, before)


def test_effective_lambda_logged() -> None:
    model = tiny_model("gpt2")
    request = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima")
    params = EmmetParams(
        layers=(1,), v_steps=3, covariance="identity", contexts=((4, 1),), slack=0.2,
        covariance_weight=5.0,
    )  # fmt: skip
    sites = locate(model, [request], params, EditContext())
    patch = compute_delta(model, [request], sites, params, EditContext())
    assert patch.header.metrics["effective_weight"] == [1.0]
    assert patch.header.metrics["layers"][0]["condition"] >= 1
