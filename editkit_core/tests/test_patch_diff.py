"""What differs between two patches, checked against dense arithmetic."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit_core.patch import (
    BaseFingerprint,
    DenseEntry,
    LowRankEntry,
    MethodRef,
    Patch,
    TensorFingerprint,
)
from editkit_core.patch.diff import EditDiff, FieldDiff, TensorDiff, diff
from editkit_core.patch.factored import Factored
from editkit_core.patch.kinds import WeightEntry
from editkit_core.types import EditRequest, Site

D_OUT, D_IN = 6, 9


def site(name: str = "h.0") -> Site:
    return Site(module=name, parameter=f"{name}.weight", layer=0)


def base(*names: str, shape: tuple[int, int] = (D_OUT, D_IN), **changes: object) -> BaseFingerprint:
    tensor = TensorFingerprint(shape=shape, dtype="F32", sha256="0" * 64)
    made = BaseFingerprint(model="tiny", tensors={f"{name}.weight": tensor for name in names})
    return attrs.evolve(made, **changes)


def patch(*entries: WeightEntry, **parts: object) -> Patch:
    names = dict.fromkeys(entry.site.module for entry in entries)
    given: dict[str, object] = {
        "entries": entries,
        "method": MethodRef(name="rome", dist="editkit-rome", version="1"),
        "base": base(*names),
        "environment": {},
        "created": "2000-01-01T00:00:00Z",
    }
    return Patch.from_parts(**(given | parts))  # type: ignore[arg-type]  # parts are checked by use


def low_rank(rank: int, seed: int, name: str = "h.0") -> LowRankEntry:
    numbers = np.random.default_rng(seed)
    return LowRankEntry(
        site=site(name),
        u=numbers.standard_normal((D_OUT, rank)),
        v=numbers.standard_normal((rank, D_IN)),
    )


def dense(seed: int, name: str = "h.0") -> DenseEntry:
    return DenseEntry(
        site=site(name), delta=np.random.default_rng(seed).standard_normal((D_OUT, D_IN))
    )


def full(*entries: WeightEntry) -> np.ndarray:
    return sum((entry.delta().numpy() for entry in entries), np.zeros((D_OUT, D_IN)))


def only(found: tuple[TensorDiff, ...]) -> TensorDiff:
    (tensor,) = found
    return tensor


CHANGES = {
    "rank one": (low_rank(1, 0),),
    "rank three": (low_rank(3, 1),),
    "two of low rank": (low_rank(1, 2), low_rank(2, 3)),
    "full": (dense(4),),
    "full and low rank": (dense(5), low_rank(2, 6)),
}


@pytest.mark.parametrize("one", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("two", CHANGES.values(), ids=CHANGES)
def test_norms_cosine_and_difference_are_those_of_the_dense_changes(
    one: tuple[WeightEntry, ...], two: tuple[WeightEntry, ...]
) -> None:
    found = only(diff(patch(*one), patch(*two)).tensors)
    a, b = full(*one), full(*two)
    norms = np.linalg.norm(a), np.linalg.norm(b)
    assert found.norms == pytest.approx(norms, rel=1e-12)
    assert found.cosine == pytest.approx((a * b).sum() / (norms[0] * norms[1]), abs=1e-12)
    assert found.difference == pytest.approx(np.linalg.norm(a - b), rel=1e-9, abs=1e-12)
    assert found.relative == pytest.approx(found.difference / max(norms), rel=1e-12)
    assert found.state == ("same" if one is two else "changed")


def test_the_same_change_in_other_factors_is_the_same() -> None:
    numbers = np.random.default_rng(0)
    entry = low_rank(3, 1)
    mix = numbers.standard_normal((3, 3))
    other = LowRankEntry(
        site=entry.site,
        u=entry.u.astype(float) @ mix,
        v=np.linalg.solve(mix, entry.v.astype(float)),
    )
    found = diff(patch(entry), patch(other))
    assert only(found.tensors).state == "same"
    assert found.same_change
    assert not found.same_content


def test_a_small_difference_is_not_lost_in_cancellation() -> None:
    entry = low_rank(1, 0)
    step = np.zeros((D_OUT, 1))
    step[0] = 1e-4
    other = LowRankEntry(site=entry.site, u=entry.u + step, v=entry.v)
    found = only(diff(patch(entry), patch(other)).tensors)
    assert found.difference == pytest.approx(np.linalg.norm(full(entry) - full(other)), rel=1e-6)
    assert found.state == "changed"


def test_weights_that_only_one_changes_are_named() -> None:
    found = diff(patch(low_rank(1, 0, "a")), patch(low_rank(2, 1, "b"))).tensors
    states = [(one.parameter, one.state, one.ranks, one.cosine, one.relative) for one in found]
    assert states == [
        ("a.weight", "removed", (1, 0), None, 1.0),
        ("b.weight", "added", (0, 2), None, 1.0),
    ]


def test_weights_of_other_shapes_have_nothing_in_common() -> None:
    small = LowRankEntry(site=site(), u=np.full((1, 1), 3.0), v=np.ones((1, 1)))
    large = LowRankEntry(site=site(), u=np.full((1, 1), 4.0), v=np.eye(1, 5))
    found = only(
        diff(
            patch(small, base=base("h.0", shape=(1, 1))),
            patch(large, base=base("h.0", shape=(1, 5))),
        ).tensors
    )
    assert (found.norms, found.cosine, found.difference) == ((3.0, 4.0), None, 5.0)


def test_large_changes_of_low_rank_are_compared_without_a_full_matrix() -> None:
    d_out, d_in = 4096, 11008  # a full matrix would take 360 MB
    numbers = np.random.default_rng(0)
    entries = [
        LowRankEntry(
            site=site(),
            u=numbers.standard_normal((d_out, 4), dtype=np.float32),
            v=numbers.standard_normal((4, d_in), dtype=np.float32),
        )
        for _ in range(2)
    ]
    one, two = (patch(entry, base=base("h.0", shape=(d_out, d_in))) for entry in entries)
    tracemalloc.start()
    found = only(diff(one, two).tensors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert found.cosine == pytest.approx(0, abs=1e-2)  # random directions


def test_edits_are_paired_by_fact() -> None:
    def edit(subject: str, target: str, **more: str) -> EditRequest:
        return EditRequest(
            prompt="The capital of {} is", subject=subject, target_new=target, **more
        )

    norway = EditRequest(
        prompt="{}, its capital being", subject="Norway", target_new="Lima", relation="capital"
    )
    one = patch(
        low_rank(1, 0),
        edits=[edit("Peru", "Rome"), edit("Chad", "Oslo"), edit("Mali", "Bern"), norway],
    )
    two = patch(
        low_rank(1, 0),
        edits=[
            edit("Norway", "Lima", relation="capital"), edit("Chad", "Nice"), edit("Peru", "Rome"),
            edit("Cuba", "Kyiv"),
        ],
    )  # fmt: skip
    found = [(one.subject, one.state, one.first, one.second) for one in diff(one, two).edits]
    assert found == [
        ("Peru", "same", "Rome", "Rome"),
        ("Chad", "changed", "Oslo", "Nice"),
        ("Mali", "removed", "Bern", None),
        ("Norway", "same", "Lima", "Lima"),
        ("Cuba", "added", None, "Kyiv"),
    ]


def test_a_fact_that_is_edited_twice_is_paired_once() -> None:
    edit = EditRequest(prompt="{} is", subject="x", target_new="y")
    found = diff(patch(low_rank(1, 0), edits=[edit, edit]), patch(low_rank(1, 0), edits=[edit]))
    assert [one.state for one in found.edits] == ["same", "removed"]
    assert found.edits[0] == EditDiff(
        prompt="x is", subject="x", state="same", first="y", second="y"
    )


def test_parameters_base_and_header_are_compared_by_path() -> None:
    one = patch(low_rank(1, 0), params={"lr": 0.5, "old": 1, "deep": {"a": [1]}}, seed=1)
    two = patch(
        low_rank(1, 0),
        params={"lr": 0.25, "new": None, "deep": {"a": [1, 2]}},
        seed=2,
        licence="MIT",
        base=base("h.0", model="other", revision="main"),
    )
    found = diff(one, two)
    assert found.params == (
        FieldDiff(name="params.deep.a", state="changed", first=[1], second=[1, 2]),
        FieldDiff(name="params.lr", state="changed", first=0.5, second=0.25),
        FieldDiff(name="params.new", state="added", first=None, second=None),
        FieldDiff(name="params.old", state="removed", first=1, second=None),
    )
    assert [item.name for item in found.base] == ["base.model", "base.revision"]
    assert [item.name for item in found.other] == ["seed", "licence"]


def test_a_patch_does_not_differ_from_itself() -> None:
    one = patch(low_rank(2, 0), edits=[EditRequest(prompt="{} is", subject="x", target_new="y")])
    found = diff(one, one)
    assert found.same_content
    assert found.same_change
    assert not any((found.base, found.params, found.other, found.conflicts))
    assert [edit.state for edit in found.edits] == ["same"]


def test_conflicts_between_the_two_are_told() -> None:
    edits = [EditRequest(prompt="{} is", subject="x", target_new=target) for target in ("a", "b")]
    one, two = (patch(low_rank(1, i), edits=[edit]) for i, edit in enumerate(edits))
    (conflict,) = diff(one, two).conflicts
    assert (conflict.kind, conflict.lower, conflict.upper) == ("contradiction", one.id, two.id)


def test_a_patch_that_needs_a_third_one_is_no_conflict_of_the_two() -> None:
    one, two = patch(low_rank(1, 0)), patch(low_rank(1, 1), requires=["ek-third"])
    assert diff(one, two).conflicts == ()


# -- arithmetic of factors --------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), ranks=st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_compressed_factors_are_the_same_product_of_the_rank_numpy_finds(
    seed: int, ranks: list[int]
) -> None:
    numbers = np.random.default_rng(seed)
    parts = [
        Factored(numbers.standard_normal((D_OUT, r)), numbers.standard_normal((r, D_IN)))
        for r in ranks
    ]
    whole = Factored.sum([*parts, parts[0]])  # the first twice: its factors depend
    dense = whole.u @ whole.v
    small = whole.compressed()
    assert small.rank == np.linalg.matrix_rank(dense) == whole.numerical_rank()
    assert np.abs(small.u @ small.v - dense).max() <= 1e-12 * np.abs(dense).max()
    assert whole.norm() == pytest.approx(np.linalg.norm(dense), rel=1e-12)


def test_a_product_that_is_zero_keeps_one_factor() -> None:
    zero = Factored(np.zeros((3, 2)), np.ones((2, 4)))
    assert zero.compressed().rank == 1
    assert zero.numerical_rank() == 0
    assert zero.norm() == 0


def test_the_module_needs_no_torch() -> None:
    code = "import sys, editkit_core.patch.diff; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
