"""AlphaEdit's solve, its null space and its history."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from editkit_alphaedit.delta import METHOD, compute_delta, protected_change
from editkit_alphaedit.locate import locate
from editkit_alphaedit.params import AlphaEditParams
from editkit_core import EditContext, EditRequest, Patch
from editkit_core.errors import IllConditionedError, StatisticsMissingError
from editkit_core.models.editable import EditableModel
from editkit_core.numerics.history import earlier_keys
from editkit_core.numerics.null_space import NullSpace, Spectrum, null_space
from editkit_core.testing.models import tiny_model

D_IN, D_OUT, N, P = 24, 10, 5, 4
NORWAY = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="old Lima")
BRAZIL = EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru")
PARAMS = AlphaEditParams(
    layers=(0, 1), v_steps=4, contexts=((4, 2),), null_energy=0.3, ridge=0.1, covariance="auto"
)


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def low_rank_keys(rank: int = 15) -> Tensor:
    return numbers(D_IN, rank, seed=1) @ numbers(rank, 300, seed=2)


def spectrum(keys: Tensor) -> Spectrum:
    return Spectrum.of(keys @ keys.T / keys.shape[1])


def exact(rank: int = 15) -> NullSpace:
    return null_space(spectrum(low_rank_keys(rank)), rule="threshold", limit=1e-8)


K, R, PAST = numbers(D_IN, N, seed=3), numbers(D_OUT, N, seed=4), numbers(D_IN, P, seed=5)
NONE = torch.zeros(0, 0, dtype=torch.float64)


@pytest.mark.parametrize("rank", [5, 19])
def test_projector_idempotent(rank: int) -> None:
    """Whichever half of the basis is kept, P is symmetric, idempotent, and of the stated rank."""
    space = exact(rank)
    p = space.project(torch.eye(D_IN))
    torch.testing.assert_close(p @ p, p, rtol=0, atol=1e-12)
    torch.testing.assert_close(p, p.T, rtol=0, atol=1e-12)
    assert float(torch.trace(p)) == pytest.approx(D_IN - rank)
    assert space.rank == D_IN - rank


def test_delta_in_range_p() -> None:
    space = exact()
    delta = _delta(protected_change(K, R, PAST, space, 0.5))
    torch.testing.assert_close(space.project(delta.T).T, delta, rtol=0, atol=1e-12)


def test_exact_null_space_zero_disturbance() -> None:
    delta, other = _delta(protected_change(K, R, NONE, exact(), 0.5)), low_rank_keys()
    assert float((delta @ other).norm() / (delta.norm() * other.norm())) < 1e-12


def test_threshold_bound() -> None:
    other = numbers(D_IN, 500, seed=9) * torch.logspace(-2, 1, D_IN, dtype=torch.float64)[:, None]
    space = null_space(spectrum(other), rule="threshold", limit=0.5)
    delta = _delta(protected_change(K, R, NONE, space, 0.5))
    c = other @ other.T / 500
    assert float(torch.trace(delta @ c @ delta.T)) <= 0.5 * float(delta.norm() ** 2)
    assert space.largest < 0.5


def test_primal_dual_reference_equal() -> None:
    """The authors' form: X = [P (K Kᵀ + K_p K_pᵀ) + λ I]⁻¹ P K Rᵀ, Δ = Xᵀ."""
    space = exact()
    p = space.project(torch.eye(D_IN))
    gram = K @ K.T + PAST @ PAST.T
    x = torch.linalg.solve(p @ gram + 0.7 * torch.eye(D_IN).double(), p @ K @ R.T)
    ours = _delta(protected_change(K, R, PAST, space, 0.7))
    torch.testing.assert_close(ours, x.T, rtol=1e-9, atol=1e-11)


def test_rank_at_most_e() -> None:
    change = protected_change(K, R, PAST, exact(), 0.5)
    assert change.u.shape == (D_OUT, N)
    assert change.v.shape == (N, D_IN)


def test_what_other_text_sees_of_rows_is_that_of_its_keys() -> None:
    keys = low_rank_keys()
    rows = numbers(N, D_IN, seed=6)
    seen = rows @ keys  # (n, tokens)
    torch.testing.assert_close(exact().gram(rows), seen @ seen.T / keys.shape[1])
    inside = exact().project(rows.T).T
    assert float(exact().gram(inside).norm()) < 1e-12


def test_without_a_null_space_it_is_a_ridge() -> None:
    everything = null_space(spectrum(low_rank_keys()), rule="threshold", limit=1e9)
    ours = _delta(protected_change(K, R, NONE, everything, 2.0))
    ridge = torch.linalg.solve(K @ K.T + 2.0 * torch.eye(D_IN).double(), K @ R.T).T
    torch.testing.assert_close(ours, ridge, rtol=1e-9, atol=1e-11)


def test_earlier_keys_are_disturbed_less() -> None:
    space = exact()
    free = _delta(protected_change(K, R, NONE, space, 1e-3))
    held = _delta(protected_change(K, R, PAST, space, 1e-3))
    assert float((held @ PAST).norm()) < 0.05 * float((free @ PAST).norm())


def test_energy_keeps_the_weakest_directions_up_to_its_share() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    made = Spectrum(values=values, vectors=torch.eye(4, dtype=torch.float64), origin={})
    space = null_space(made, rule="energy", limit=0.31)
    assert (space.rank, space.largest, space.share) == (2, 2.0, pytest.approx(0.3))


def test_a_threshold_that_leaves_nothing_says_from_where_on_something_is_left() -> None:
    values = torch.tensor([0.5, 2.0], dtype=torch.float64)
    made = Spectrum(values=values, vectors=torch.eye(2, dtype=torch.float64), origin={})
    with pytest.raises(IllConditionedError, match=r"more than 0\.5"):
        null_space(made, rule="threshold", limit=0.02)


# -- the method --------------------------------------------------------------------------------


def edit(
    model: EditableModel, request: EditRequest, folder: Path, *, stack: tuple[Patch, ...] = ()
) -> Patch:
    context = EditContext(statistics_dir=folder, stack=stack)
    sites = locate(model, [request], PARAMS, context)
    return compute_delta(model, [request], sites, PARAMS, context)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


def test_state_survives_save_load(folder: Path, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    first = edit(model, NORWAY, folder)
    path = tmp_path / "first.editkit.safetensors"
    first.save(path)
    direct = edit(model, BRAZIL, folder, stack=(first,))
    loaded = edit(model, BRAZIL, folder, stack=(Patch.load(path),))
    assert direct.header.metrics["protected_edits"] == 1
    for a, b in zip(direct.weight_entries, loaded.weight_entries, strict=True):
        torch.testing.assert_close(a.delta(), b.delta(), rtol=1e-2, atol=1e-5)  # keys in float16


def test_single_protocol_resets_state(folder: Path) -> None:
    model = tiny_model("gpt2")
    alone = edit(model, BRAZIL, folder)
    edit(model, NORWAY, folder)
    again = edit(model, BRAZIL, folder)
    assert again.header.content_digest == alone.header.content_digest
    assert again.header.metrics["protected_edits"] == 0


def test_history_comes_from_its_own_layers(folder: Path) -> None:
    model = tiny_model("gpt2")
    first = edit(model, NORWAY, folder)
    assert earlier_keys(model.site(0), METHOD, (first, first)).shape[1] == 2
    assert earlier_keys(model.site(2), METHOD, (first,)).numel() == 0
    assert earlier_keys(model.site(0), "memit", (first,)).numel() == 0


def test_history_can_be_left_out(folder: Path) -> None:
    model = tiny_model("gpt2")
    first = edit(model, NORWAY, folder)
    context = EditContext(statistics_dir=folder, stack=(first,))
    params = attrs.evolve(PARAMS, history=False)
    sites = locate(model, [BRAZIL], params, context)
    free = compute_delta(model, [BRAZIL], sites, params, context)
    alone = edit(model, BRAZIL, folder)
    for a, b in zip(free.weight_entries, alone.weight_entries, strict=True):
        assert torch.equal(a.delta(), b.delta())


def test_more_keys_than_their_width_are_kept_as_their_gram_matrix(folder: Path) -> None:
    model = tiny_model("gpt2")
    first = edit(model, NORWAY, folder)
    width = model.weight(model.site(0)).shape[1]
    many = earlier_keys(model.site(0), METHOD, (first,) * (width + 10))
    key = earlier_keys(model.site(0), METHOD, (first,))
    assert many.shape == (width, width)
    expected = (width + 10) * key @ key.T
    torch.testing.assert_close(many @ many.T, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_gptj_state_allocated(family: str, folder: Path) -> None:
    model = tiny_model(family)
    first = edit(model, NORWAY, folder)
    second = edit(model, BRAZIL, folder, stack=(first,))
    assert second.header.metrics["protected_edits"] == 1


def test_required_statistics_that_are_missing_are_named(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    params = attrs.evolve(PARAMS, covariance="required")
    context = EditContext(statistics_dir=tmp_path)
    with pytest.raises(StatisticsMissingError, match="editkit stats"):
        compute_delta(model, [NORWAY], (model.site(0),), params, context)


def _delta(change: object) -> Tensor:
    return change.u @ change.v  # type: ignore[attr-defined, no-any-return]  # a Change
