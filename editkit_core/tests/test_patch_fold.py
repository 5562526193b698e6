"""Several patches in one file, and apart again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from editkit_core.errors import (
    BaseMismatchError,
    ExportError,
    InvalidParameterError,
    StackConflictError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.patch import (
    Canary,
    Evidence,
    LowRankEntry,
    MethodRef,
    Patch,
    apply_patch,
    digests,
    stack_digest,
)
from editkit_core.patch import fold_record as record_module
from editkit_core.patch.fold import fold, split
from editkit_core.patch.header import JsonValue
from editkit_core.patch.io import to_pieces
from editkit_core.testing import tiny_model
from editkit_core.testing.patches import random_patch
from editkit_core.types import EditRequest

CANARY = Canary(tokens=[[1, 2]], prompt_lengths=[1], before=[-1.0], after=[-0.5])


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("gpt2")


def file_of(patch: Patch) -> bytes:
    return b"".join(to_pieces(patch))


def reread(patch: Patch, tmp_path: Path) -> Patch:
    path = tmp_path / "fold"
    patch.save(path, force=True)
    return Patch.load(path)


def remade(patch: Patch, **changes: object) -> Patch:
    """Make a patch again with some fields of its header changed."""
    header = patch.header
    fields: dict[str, object] = {
        "entries": patch.entries, "method": header.method, "base": header.base,
        "edits": header.edits, "params": header.params, "seed": header.seed,
        "contexts": header.contexts, "evidence": patch.evidence, "canary": patch.canary,
        "environment": {}, "created": header.created,
    }  # fmt: skip
    return Patch.from_parts(**(fields | changes))  # type: ignore[arg-type]  # checked by use


def dense_change(patch: Patch) -> dict[str, np.ndarray]:
    """Add a patch up by weight with numpy alone."""
    total: dict[str, np.ndarray] = {}
    for entry in patch.entries:
        arrays = {name: array.astype(np.float64) for name, array in entry.tensors().items()}
        delta = arrays["u"] @ arrays["v"] if "u" in arrays else arrays["delta"]
        total[entry.site.parameter] = total.get(entry.site.parameter, 0) + delta
    return total


def three(model: EditableModel) -> list[tuple[Patch, float]]:
    return [
        (random_patch(model, layers=(1,), rank=1, seed=1, name="one"), 1.0),
        (random_patch(model, layers=(0, 1), rank=3, seed=2), 1.0),
        (random_patch(model, layers=(1,), rank=None, seed=3, evidence=False), 1.0),
    ]


def test_the_parts_come_back_with_their_ids_and_bytes(model: EditableModel, tmp_path: Path) -> None:
    parts = three(model)
    together = reread(fold(parts, name="three"), tmp_path)
    assert together.header.name == "three"
    assert [file_of(part) for part in split(together)] == [file_of(part) for part, _ in parts]


def test_parts_of_a_fold_inside_a_fold_come_back(model: EditableModel, tmp_path: Path) -> None:
    first, second, third = three(model)
    inner = fold([first, second])
    outer = reread(fold([(inner, 1.0), third]), tmp_path)
    got_inner, got_third = split(outer)
    assert (got_inner.id, got_third.id) == (inner.id, third[0].id)
    assert [part.id for part in split(got_inner)] == [first[0].id, second[0].id]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fold_gives_the_bits_that_the_parts_give_together(dtype: torch.dtype) -> None:
    model = tiny_model("gpt2")
    model.model.to(dtype)
    parts = three(model)
    names = ["transformer.h.0.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.weight"]
    applied = [apply_patch(model, part) for part, _ in parts]
    together = [model.parameter(name).clone() for name in names]
    for one in reversed(applied):
        one.revert()
    with apply_patch(model, fold(parts)):
        folded = [model.parameter(name).clone() for name in names]
    for a, b in zip(together, folded, strict=True):
        assert torch.equal(a, b)


def test_scales_are_baked_in_as_numpy_says(model: EditableModel) -> None:
    parts = [(patch, scale) for (patch, _), scale in zip(three(model), (0.3, -2, 1.7), strict=True)]
    expected: dict[str, np.ndarray] = {}
    for patch, scale in parts:
        for name, delta in dense_change(patch).items():
            expected[name] = expected.get(name, 0) + scale * delta
    got = dense_change(fold(parts))
    assert got.keys() == expected.keys()
    for name, delta in expected.items():
        assert np.abs(got[name] - delta).max() < 1e-6 * np.abs(delta).max()


def test_a_scaled_part_comes_back_scaled_under_another_id(model: EditableModel) -> None:
    patch = remade(three(model)[0][0], metrics={"efficacy": 1.0})
    (part,) = split(fold([(patch, 0.5)]))
    assert part.id != patch.id
    assert part.header.params == patch.header.params
    assert part.header.metrics == {}
    name = patch.entries[0].site.parameter
    assert np.array_equal(dense_change(part)[name], 0.5 * dense_change(patch)[name])


def test_a_canary_is_dropped_from_the_fold_and_its_part(model: EditableModel) -> None:
    bare = random_patch(model, seed=1)
    patch = remade(bare, canary=CANARY)
    together = fold([(patch, 1.0)])
    assert together.canary is None
    (part,) = split(together)
    assert file_of(part) == file_of(remade(bare))


def test_the_fold_says_what_it_holds_and_replaces(model: EditableModel) -> None:
    first, second = random_patch(model, seed=1), random_patch(model, seed=2)
    first = remade(first, requires=["ek-a"], licence="MIT", replaces=["ek-old"])
    second = remade(second, requires=[first.id, "ek-b"], licence="MIT", conflicts=["ek-c"])
    header = fold([(first, 1.0), (second, 1.0)]).header
    assert (header.method.name, header.method.dist) == ("fold", "editkit-core")
    assert header.replaces == (first.id, second.id, "ek-old")
    assert header.requires == ("ek-a", "ek-b")
    assert header.conflicts == ("ek-c",)
    assert header.licence == "MIT"
    assert header.edits == first.header.edits + second.header.edits


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("MIT", "MIT"), "MIT"),
        (("MIT", None), None),
        (("MIT", "Apache-2.0"), "Apache-2.0 AND MIT"),
        (("MIT", "Zlib OR 0BSD"), "MIT AND (Zlib OR 0BSD)"),
    ],
)
def test_the_licence_is_what_holds_for_all(
    model: EditableModel, licences: Sequence[str | None], expected: str | None
) -> None:
    parts = [
        (remade(random_patch(model, seed=i), licence=licence), 1.0)
        for i, licence in enumerate(licences)
    ]
    assert fold(parts).header.licence == expected


def test_patches_for_different_bases_are_refused(model: EditableModel) -> None:
    one, two = random_patch(model, seed=1), random_patch(model, seed=2)
    tensors = {
        name: attrs.evolve(tensor, sha256="0" * 64)
        for name, tensor in two.header.base.tensors.items()
    }
    other = remade(two, base=attrs.evolve(two.header.base, tensors=tensors))
    with pytest.raises(BaseMismatchError, match=r"do not agree on transformer\.h\.1") as caught:
        fold([(one, 1.0), (other, 1.0)])
    assert caught.value.facts["parameter"] == "transformer.h.1.mlp.c_proj.weight"


def test_patches_of_other_weights_and_another_configuration_are_refused(
    model: EditableModel,
) -> None:
    one, two = random_patch(model, layers=(0,)), random_patch(model, layers=(1,))
    base = attrs.evolve(two.header.base, config_digest="f" * 64)
    with pytest.raises(BaseMismatchError, match="different configurations"):
        fold([(one, 1.0), (remade(two, base=base), 1.0)])


def test_the_same_patch_twice_and_declared_conflicts_are_refused(model: EditableModel) -> None:
    one = random_patch(model, seed=1)
    with pytest.raises(StackConflictError, match="given twice"):
        fold([(one, 1.0), (one, 0.5)])
    enemy = remade(random_patch(model, seed=2), conflicts=[one.id])
    with pytest.raises(StackConflictError, match="must not be used with"):
        fold([(one, 1.0), (enemy, 1.0)])


@pytest.mark.parametrize("scale", [0, float("nan"), float("inf"), True])
def test_useless_scales_are_refused(model: EditableModel, scale: float) -> None:
    with pytest.raises(InvalidParameterError, match="scale"):
        fold([(random_patch(model), scale)])


def test_nothing_to_fold_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="at least one"):
        fold([])


# -- what the fold stands on ------------------------------------------------------------------


def on(patch: Patch, *below: tuple[Patch, float]) -> Patch:
    return remade(patch, computed_on=stack_digest(below))


def test_a_fold_of_patches_computed_on_each_other_stands_on_the_base(model: EditableModel) -> None:
    first = random_patch(model, seed=1)
    second = on(random_patch(model, seed=2), (first, 0.5))
    third = on(random_patch(model, seed=3), (first, 0.5), (second, 1.0))
    assert fold([(first, 0.5), (second, 1.0), (third, 1.0)]).header.computed_on is None


def test_a_part_that_stood_on_another_scale_is_refused(model: EditableModel) -> None:
    first = random_patch(model, seed=1)
    second = on(random_patch(model, seed=2), (first, 0.5))
    third = on(random_patch(model, seed=3), (first, 1.0), (second, 1.0))
    with pytest.raises(StackConflictError, match="computed on a stack of other patches"):
        fold([(first, 1.0), (second, 1.0), (third, 1.0)])


def test_parts_on_one_and_the_same_stack_keep_it(model: EditableModel) -> None:
    ground = random_patch(model, seed=9)
    parts = [(on(random_patch(model, seed=i), (ground, 1.0)), 1.0) for i in (1, 2)]
    assert fold(parts).header.computed_on == stack_digest([ground])


def test_patches_below_explain_what_a_part_stood_on(model: EditableModel) -> None:
    ground = random_patch(model, seed=9)
    first = on(random_patch(model, seed=1), (ground, 2.0))
    second = on(random_patch(model, seed=2), (ground, 2.0), (first, 1.0))
    parts = [(first, 1.0), (second, 1.0)]
    with pytest.raises(StackConflictError, match="computed on a stack of other patches"):
        fold(parts)
    assert fold(parts, below=[(ground, 2.0)]).header.computed_on == stack_digest([(ground, 2.0)])


def test_a_long_chain_of_edits_is_folded(model: EditableModel) -> None:
    chain: list[Patch] = []
    for seed in range(40):
        chain.append(remade(random_patch(model, seed=seed), computed_on=stack_digest(chain)))
    assert fold([(patch, 1.0) for patch in chain]).header.computed_on is None


# -- compression ------------------------------------------------------------------------------


def test_compression_keeps_the_change_at_the_rank_it_has(model: EditableModel) -> None:
    numbers = np.random.default_rng(0)
    template = random_patch(model, layers=(1,), rank=1, evidence=False)
    (entry,) = template.entries
    shared = numbers.standard_normal((1, entry.shape[1]))
    parts = []
    for seed in range(5):  # five changes that read the same direction, and one that does not
        u = numbers.standard_normal((entry.shape[0], 1))
        v = shared if seed else numbers.standard_normal(shared.shape)
        parts.append((remade(template, entries=[LowRankEntry(site=entry.site, u=u, v=v)]), 1.5))
    plain, small = fold(parts), fold(parts, compress=True)
    name = entry.site.parameter
    expected = dense_change(plain)[name]
    assert [one.rank for one in small.entries] == [2] == [np.linalg.matrix_rank(expected)]
    error = np.linalg.norm(dense_change(small)[name] - expected) / np.linalg.norm(expected)
    assert error < 1e-6
    assert small.nbytes < plain.nbytes


def test_compression_leaves_dense_entries_and_other_weights_apart(model: EditableModel) -> None:
    parts = three(model)
    small = fold(parts, compress=True)
    found = sorted((entry.site.layer, entry.rank or 0) for entry in small.entries)
    assert found == [(0, 3), (1, 0), (1, 4)]


def test_a_compressed_fold_cannot_be_split(model: EditableModel) -> None:
    with pytest.raises(ExportError, match="compressed"):
        split(fold(three(model), compress=True))


# -- limits -----------------------------------------------------------------------------------


def test_headers_that_do_not_fit_are_left_out(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = ["x" * 400_000]
    parts = [(remade(random_patch(model, seed=i), contexts=long), 1.0) for i in range(3)]
    together = fold(parts)
    assert len(file_of(together)) < 100_000
    for part, (patch, _) in zip(split(together), parts, strict=True):
        assert part.header.params["id"] == patch.id
        assert part.header.edits == patch.header.edits
        name = patch.entries[0].site.parameter
        assert np.array_equal(dense_change(part)[name], dense_change(patch)[name])


def test_more_arrays_than_a_file_takes_are_refused(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editkit_core.patch.fold.MAX_TENSORS", 8)
    parts = [(random_patch(model, seed=i, evidence=False), 1.0) for i in range(5)]
    with pytest.raises(ExportError, match=r"at most 8.*compress"):
        fold(parts)
    assert len(fold(parts, compress=True).entries) == 1


# -- splitting --------------------------------------------------------------------------------


def edited_in_turn(model: EditableModel, n: int = 3, **changes: object) -> Patch:
    """Make what ROME makes of n requests: one rank-one entry and one key a request."""
    ones = [random_patch(model, seed=seed, evidence=False) for seed in range(n)]
    numbers = np.random.default_rng(1)
    site = ones[0].entries[0].site
    return remade(
        ones[0],
        **{
            "entries": [one.entries[0] for one in ones],
            "edits": [
                EditRequest(prompt="{} is", subject=f"s{i}", target_new=f"t{i}", id=f"e{i}")
                for i in range(n)
            ],
            "evidence": Evidence(
                module=site.module,
                keys=numbers.standard_normal((n, ones[0].entries[0].shape[1])),
                values=numbers.standard_normal((n, ones[0].entries[0].shape[0])),
            ),
            "method": MethodRef(name="rome", dist="editkit-rome", version="1"),
            "metrics": {"layer": 1, "edits": [{"subject": f"s{i}"} for i in range(n)]},
            **changes,
        },
    )


def test_a_patch_of_several_edits_is_split_by_edit(model: EditableModel) -> None:
    whole = edited_in_turn(model)
    parts = split(whole)
    assert len(parts) == 3
    for i, part in enumerate(parts):
        assert part.header.edits == whole.header.edits[i : i + 1]
        assert part.entries == whole.entries[i : i + 1]
        assert np.array_equal(part.evidence[0].keys, whole.evidence[0].keys[i : i + 1])
        assert part.header.metrics == {"layer": 1, "edits": [{"subject": f"s{i}"}]}
        assert part.header.computed_on == stack_digest(parts[:i])
        assert part.header.conflicts == (whole.id,)
        assert part.header.method == whole.header.method
        assert part.header.name == f"e{i}"


def test_parts_by_edit_fold_to_the_whole_change(model: EditableModel) -> None:
    whole = edited_in_turn(model)
    together = fold([(part, 1.0) for part in split(whole)])
    assert together.header.computed_on is None
    name = whole.entries[0].site.parameter
    difference = dense_change(together)[name] - dense_change(whole)[name]
    assert np.abs(difference).max() < 1e-14


def test_parts_by_edit_stand_on_what_the_whole_stood_on(model: EditableModel) -> None:
    ground = random_patch(model, seed=9)
    whole = edited_in_turn(model, computed_on=stack_digest([ground]))
    with pytest.raises(ExportError, match="computed on other patches"):
        split(whole)
    first, second, _ = split(whole, below=[(ground, 1.0)])
    assert first.header.computed_on == stack_digest([ground])
    assert second.header.computed_on == stack_digest([ground, first])


def test_what_cannot_be_split_by_edit_is_refused_with_the_reason(model: EditableModel) -> None:
    cases = {
        "it holds 1 edit": random_patch(model),
        "2 edits and 3 entries": edited_in_turn(
            model, edits=edited_in_turn(model).header.edits[:2], evidence=None
        ),
        "not of rank one": edited_in_turn(
            model, n=1, edits=edited_in_turn(model, n=2).header.edits, evidence=None,
            entries=random_patch(model, layers=(1, 1), rank=2).entries,
        ),
        "several weights": remade(
            random_patch(model, layers=(0, 1), rank=1),
            edits=edited_in_turn(model, n=2).header.edits, evidence=None,
        ),
        "not one key an edit": edited_in_turn(
            model, evidence=random_patch(model, layers=(1,)).evidence
        ),
    }  # fmt: skip
    for reason, patch in cases.items():
        with pytest.raises(ExportError, match=reason):
            split(patch)


def record(patch: Patch, **changes: JsonValue) -> Patch:
    """Return a fold whose record of parts says something else."""
    return remade(patch, params={**patch.header.params, **changes})


def test_a_record_that_does_not_fit_is_refused(model: EditableModel) -> None:
    together = fold(three(model))
    parts = together.header.params["parts"]
    gap = [{**parts[0], "edits": {"start": 0, "stop": 0}}, *parts[1:]]
    beyond = [{**parts[0], "entries": {"start": -1, "stop": 10**9}}, *parts[1:]]
    for params in (
        {"parts": 3}, {"parts": [{}]}, {"parts": gap}, {"parts": beyond}, {"extra": 1},
        {"parts": []},
    ):  # fmt: skip
        with pytest.raises(ExportError, match="cannot be used"):
            split(record(together, **params))


def test_a_part_that_is_not_what_its_id_says_is_refused(model: EditableModel) -> None:
    together = fold(three(model))
    parts = together.header.params["parts"]
    header = {**parts[0]["header"], "seed": "77"}
    with pytest.raises(ExportError, match="but what it holds gives"):
        split(record(together, parts=[{**parts[0], "header": header}, *parts[1:]]))
    for broken in ({**header, "surprise": 1}, {}, [], {**header, "base": None}):
        with pytest.raises(ExportError, match=r"cannot be put together|is no object"):
            split(record(together, parts=[{**parts[0], "header": broken}, *parts[1:]]))


def test_the_record_leaves_out_what_the_fold_itself_says(model: EditableModel) -> None:
    patch = random_patch(model)
    rest = record_module.rest_of_header(patch)
    assert not rest.keys() & {"id", "tensors", "entries", "edits", "evidence"}
    assert digests.canonical(rest, "rest")
