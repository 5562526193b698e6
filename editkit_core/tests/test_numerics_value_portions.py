"""Rows run in portions give what all rows at once give, and hold less."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import torch
from held import Held
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit_core import EditRequest
from editkit_core.models.editable import EditableModel
from editkit_core.numerics import joint_opt, value_opt
from editkit_core.numerics.suffixes import Suffixes
from editkit_core.numerics.value_loss import Clean, Objective, ValueSettings
from editkit_core.numerics.value_opt import ValueJob, ValueResult, optimise_values
from editkit_core.numerics.value_portions import most_bytes, portions, pulled, run_bytes
from editkit_core.numerics.value_rows import build_rows, stack_rows
from editkit_core.testing.models import TINY_FAMILIES, tiny_model

REQUESTS = (
    EditRequest(prompt="The capital of {} is", subject="Norway", target_new="old Lima"),
    EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru"),
    EditRequest(prompt="The king of {} was a", subject="Peru", target_new="mill"),
)
CONTEXTS = ("", "The old mill. ", "In Norway, ")
SETTINGS = ValueSettings(
    steps=12, lr=0.2, kl_factor=0.3, ending_factor=0.5, weight_decay=0.1, probability_stop=0.5
)
GPT2 = tiny_model("gpt2")


def objective(model: EditableModel, settings: ValueSettings) -> Objective:
    site = model.site(1)
    rows = stack_rows(
        [
            build_rows(
                model, request, site, CONTEXTS, kl_prompts=("{} is a",), kl_position="subject_last",
                endings=True,
            )
            for request in REQUESTS
        ]
    )  # fmt: skip
    suffixes = Suffixes.split(model, rows.ids, rows.split)
    clean = Clean.read(site, rows, suffixes, attention=settings.attention)
    upper = suffixes.above(1 - settings.attention)
    return Objective(site=site, rows=rows, upper=upper, clean=clean, settings=settings)


def states_with(values: torch.Tensor) -> Callable[[slice, Objective], torch.Tensor]:
    return lambda _, part: part.states(values)


def vectors(whole: Objective) -> torch.Tensor:
    shape = whole.clean.before.shape
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
@pytest.mark.parametrize("damping", [1.0, 0.25])
@pytest.mark.parametrize("attention", [False, True])
def test_losses_and_gradients_of_portions_add_up(
    family: str, damping: float, attention: bool
) -> None:
    model = tiny_model(family)
    whole = objective(model, attrs.evolve(SETTINGS, said_damping=damping, attention=attention))
    ours, plain = vectors(whole).requires_grad_(), vectors(whole).requires_grad_()
    cut = portions(whole, most=1)
    assert len(cut) == len(whole.rows.ids)
    found, pull = pulled(whole, cut, ours, [ours], states_with(ours))
    expected = whole(plain)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.probability, expected.probability, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.kl, expected.kl, rtol=1e-4, atol=1e-6)
    assert found.said.tolist() == expected.said.tolist()
    (grad,) = torch.autograd.grad(expected.loss.sum(), plain)
    torch.testing.assert_close(pull()[0], grad, rtol=1e-3, atol=1e-5)


def test_damping_counts_where_all_rows_of_a_request_say_its_target() -> None:
    """With every place said, the gradient of NLL shrinks; a portion alone could not know."""
    whole = objective(GPT2, attrs.evolve(SETTINGS, kl_factor=0.0, ending_factor=0.0))
    whole = attrs.evolve(whole, settings=attrs.evolve(whole.settings, weight_decay=0.0))
    said = whole.rows
    labels = torch.cat(
        [part.rows.target.label for _, part in portions(whole, most=1) if len(part.rows.target)]
    )
    assert labels.tolist() == said.target.label.tolist()
    values = torch.zeros_like(whole.clean.before)
    spoken = attrs.evolve(said, target=attrs.evolve(said.target, label=whole.clean.best))
    for damping in (1.0, 0.25):
        mine = attrs.evolve(
            whole, rows=spoken, settings=attrs.evolve(whole.settings, said_damping=damping)
        )
        leaf = values.clone().requires_grad_()
        found, pull = pulled(mine, portions(mine, most=1), leaf, [leaf], states_with(leaf))
        assert found.said.all()
        if damping == 1.0:
            full, loss = pull()[0], found.loss
        else:
            torch.testing.assert_close(pull()[0], damping * full, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(found.loss, damping * loss)


def results(jobs: list[ValueJob], settings: ValueSettings, joint: bool) -> list[ValueResult]:
    if not joint:
        return optimise_values(GPT2, jobs, settings)
    width = GPT2.weight(GPT2.site(1)).shape[1]
    readings = 0.1 * torch.randn(len(jobs), width, generator=torch.Generator().manual_seed(4))
    return joint_opt.optimise_jointly(GPT2, jobs, readings, settings, batch=2)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_values_and_stops_are_those_of_all_rows_at_once(
    joint: bool, damping: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = attrs.evolve(SETTINGS, said_damping=damping)
    jobs = [ValueJob(request=r, site=GPT2.site(1), contexts=CONTEXTS) for r in REQUESTS]
    whole = results(jobs, settings, joint)
    for module in (value_opt, joint_opt):
        monkeypatch.setattr(module, "most_bytes", lambda _: 1)
    cut = results(jobs, settings, joint)
    assert [one.updates for one in cut] == [one.updates for one in whole]
    for one, other in zip(cut, whole, strict=True):
        assert len(one.losses) == len(other.losses)
        assert one.losses == pytest.approx(other.losses, rel=1e-3)
        torch.testing.assert_close(one.delta, other.delta, rtol=1e-3, atol=1e-4)


@settings(deadline=None)
@given(most=st.integers(1, 3_000_000))
def test_a_portion_takes_no_more_than_it_may_or_is_one_row(most: int) -> None:
    whole = objective(GPT2, SETTINGS)
    cut = portions(whole, most)
    rows, columns = whole.upper.batch.input_ids.shape
    assert [at.start for at, _ in cut] == [0, *(at.stop for at, _ in cut[:-1])]
    assert cut[-1][0].stop == rows
    d_in = GPT2.weight(GPT2.site(1)).shape[1]
    for at, part in cut:
        places = sum(len(group) for group in part.rows.groups)
        size = run_bytes(GPT2, 1, d_in, columns=columns * (at.stop - at.start), places=places)
        assert size <= most or at.stop - at.start == 1
    everything = run_bytes(
        GPT2, 1, d_in, columns=columns * rows, places=sum(len(g) for g in whole.rows.groups)
    )
    assert (len(cut) == 1) == (everything <= most or rows == 1)


def test_what_a_long_target_takes_stays_within_the_portion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("gpt2", n_layers=6, d=128)
    long = attrs.evolve(REQUESTS[0], target_new=" ".join(["old Lima"] * 20))
    jobs = [ValueJob(request=long, site=model.site(0), contexts=(*CONTEXTS, *("In Peru, ",) * 17))]
    settings = attrs.evolve(SETTINGS, steps=2, kl_factor=0.0, ending_factor=0.0)

    def peak(most: int) -> int:
        monkeypatch.setattr(value_opt, "most_bytes", lambda _: most)
        with Held() as held:
            optimise_values(model, jobs, settings)
        return held.peak

    optimise_values(model, jobs, settings)  # what is made once
    free, bound = peak(10**12), 8_000_000
    assert free > 4 * bound
    assert peak(bound) < free - 2 * bound


def test_jobs_that_do_not_fit_together_are_optimised_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [ValueJob(request=r, site=GPT2.site(1), contexts=CONTEXTS) for r in REQUESTS]
    together = optimise_values(GPT2, jobs, SETTINGS)
    groups: list[int] = []

    def counted(*args: object) -> list[ValueResult]:
        groups.append(len(args[2]))  # type: ignore[arg-type]  # the jobs
        return original(*args)  # type: ignore[arg-type]  # as given

    original = value_opt._optimise
    monkeypatch.setattr(value_opt, "_optimise", counted)
    one = run_bytes(GPT2, 1, GPT2.weight(GPT2.site(1)).shape[1], columns=50, places=30)
    for most, expected in ((10**9, 1), (one, 2), (1, 3)):
        monkeypatch.setattr(value_opt, "most_bytes", lambda _, most=most: most)
        groups.clear()
        apart = optimise_values(GPT2, jobs, SETTINGS)
        assert (len(groups), sum(groups)) == (expected, 3)
        for a, b in zip(apart, together, strict=True):
            assert a.updates == b.updates
            torch.testing.assert_close(a.delta, b.delta, rtol=1e-3, atol=1e-4)


def test_small_models_and_short_targets_are_run_at_once() -> None:
    assert most_bytes(GPT2) == 225_000_000
    assert len(portions(objective(GPT2, SETTINGS), most_bytes(GPT2))) == 1
