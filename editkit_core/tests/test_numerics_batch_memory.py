"""The memory of a batch: what is estimated, how it is cut, and what is really held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from held import Held
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit_core import EditContext, EditRequest
from editkit_core.models.editable import EditableModel
from editkit_core.numerics import free_memory
from editkit_core.numerics.batch_memory import BatchCost, BatchPlan, batch_cost, plan_batch
from editkit_core.numerics.contexts import sample_contexts
from editkit_core.numerics.window_params import WindowParams
from editkit_core.testing.models import tiny_model
from editkit_memit.delta import compute_delta
from editkit_memit.params import MemitParams

WORDS = ("Norway", "Brazil", "Peru", "Kenya", "Italy", "Lima", "Oslo", "Chile")
REQUESTS = tuple(
    EditRequest(
        prompt=f"The capital of {{}} near {other} is", subject=subject, target_new="old Lima"
    )
    for subject in WORDS
    for other in WORDS
)
MODEL = tiny_model("gpt2", n_layers=6, d=128)


def cost_of(model: EditableModel, params: WindowParams) -> BatchCost:
    contexts = sample_contexts(model, params.contexts, seed=0)
    sites = [model.site(layer) for layer in params.window(model.n_layers)]
    settings = params.value_settings(seed=0)
    return batch_cost(model, REQUESTS, sites, contexts, settings, params)


def plan_of(model: EditableModel, params: WindowParams) -> BatchPlan:
    contexts = sample_contexts(model, params.contexts, seed=0)
    sites = [model.site(layer) for layer in params.window(model.n_layers)]
    settings = params.value_settings(seed=0)
    return plan_batch(model, REQUESTS, sites, contexts, settings, params)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "fields",
    [
        {"layers": (0, 1, 2), "value_batch": 8},
        {"layers": (1,), "value_batch": 32, "v_insertion": "joint", "ending_factor": 0.5},
        {"layers": (0,), "value_batch": 1, "v_insertion": "rank_one", "key_from": "both"},
    ],
)
def test_no_more_is_held_than_estimated_and_not_much_less(
    family: str, fields: dict[str, Any]
) -> None:  # Any: fields of several types
    model = tiny_model(family, n_layers=6, d=128)
    params = MemitParams(v_steps=3, covariance="identity", contexts=((6, 3),), **fields)
    sites = [model.site(layer) for layer in params.window(model.n_layers)]
    compute_delta(model, REQUESTS[:1], sites, params, EditContext())  # what is made once
    with Held() as held:
        compute_delta(model, REQUESTS, sites, params, EditContext())
    estimate = cost_of(model, params).of(
        len(REQUESTS), part=len(REQUESTS), value_batch=params.value_batch
    )
    assert estimate / 5 <= held.peak <= estimate


def test_estimates_grow_as_their_parts_do() -> None:
    cost = BatchCost(fixed=1000, run=30, portion=100, value=20, part=7, whole=3, pair=2)
    assert cost.of(1, part=1, value_batch=8) == 1000 + 30 + 20 + 7 + 2 + 3
    assert cost.of(20, part=10, value_batch=4) == 1000 + 3 * 50 + 10 * 7 + 100 * 2 + 20 * 3
    assert cost.of(3, part=10, value_batch=8) == cost.of(3, part=3, value_batch=3)


@settings(deadline=None)
@given(room_mb=st.floats(0.5, 400), at_once=st.none() | st.integers(1, 100))
def test_a_batch_that_is_cut_fits_and_is_cut_no_finer_than_needed(
    room_mb: float, at_once: int | None
) -> None:
    params = MemitParams(
        layers=(1,),
        v_insertion="joint",
        contexts=((6, 3),),
        memory_gb=room_mb / 1e3,
        edits_at_once=at_once,
        value_batch=32,
    )
    plan = plan_of(MODEL, params)
    cost = cost_of(MODEL, params)
    edits = len(REQUESTS)
    asked = min(at_once or edits, edits)
    assert sum(plan.sizes) == edits
    assert set(plan.sizes[:-1]) <= {plan.part}
    assert 1 <= plan.value_batch <= 32
    assert plan.part <= asked
    needed = cost.of(edits, part=plan.part, value_batch=plan.value_batch)
    assert needed <= room_mb * 1e6 or plan.part == 1
    if cost.of(edits, part=asked, value_batch=32) <= room_mb * 1e6:
        assert (plan.value_batch, plan.warning) == (32, None)
        assert len(plan.sizes) == -(-edits // asked)
    elif plan.part < asked:
        one_part_less = -(-edits // (len(plan.sizes) - 1))
        more = cost.of(edits, part=one_part_less, value_batch=plan.value_batch)
        assert more > room_mb * 1e6 or one_part_less > asked
        assert f"{edits} edits at once are estimated to take" in str(plan.warning)


def test_free_memory_is_what_is_asked_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editkit_core.numerics.batch_memory.free_bytes", lambda _: 50_000_000)
    params = MemitParams(layers=(1,), v_insertion="joint", contexts=((6, 3),))
    plan = plan_of(MODEL, params)
    assert plan.room_bytes == 40_000_000
    assert len(plan.sizes) > 1


def test_a_batch_too_large_is_told_and_the_patch_says_how_it_was_cut(
    caplog: pytest.LogCaptureFixture,
) -> None:
    params = MemitParams(
        layers=(1,), v_steps=2, covariance="identity", contexts=((4, 1),), memory_gb=0.004
    )
    sites = [MODEL.site(1)]
    with caplog.at_level("WARNING", logger="editkit"):
        patch = compute_delta(MODEL, REQUESTS[:6], sites, params, EditContext())
    (told,) = [record.getMessage() for record in caplog.records]
    assert "6 edits at once are estimated to take" in told
    assert "4 MB may be used" in told
    assert patch.header.metrics["parts"] == [1] * 6
    assert patch.header.params["edits_at_once"] == 1
    again = MemitParams(
        layers=(1,), v_steps=2, covariance="identity", contexts=((4, 1),), edits_at_once=1
    )
    repeated = compute_delta(MODEL, REQUESTS[:6], sites, again, EditContext())
    for a, b in zip(patch.weight_entries, repeated.weight_entries, strict=True):
        torch.testing.assert_close(a.delta(), b.delta(), rtol=1e-5, atol=1e-7)


# -- what is free ------------------------------------------------------------------------------


def test_what_a_container_leaves_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000\n")
    monkeypatch.setattr(free_memory, "_CONTAINER", tmp_path)
    assert free_memory.free_bytes() == 2_200_000


@pytest.mark.parametrize("limit", ["max\n", "", None])
def test_a_container_without_a_limit_counts_for_nothing(
    limit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("1000000\n")
        (tmp_path / "memory.stat").write_text("anon 5\n")
    monkeypatch.setattr(free_memory, "_CONTAINER", tmp_path)
    assert free_memory.free_bytes() > 10_000_000
