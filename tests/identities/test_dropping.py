"""Facts taken out of the patches of MEMIT, PMET, EMMET and AlphaEdit.

The expected changes are solved anew in float64 from C (or P), the keys and the residuals of the
facts that stay, as the papers write them: one system of the key's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from editkit_alphaedit.delta import METHOD, null_spaces_of
from editkit_alphaedit.delta import compute_delta as alphaedit
from editkit_alphaedit.params import AlphaEditParams
from editkit_core import EditContext, EditRequest, Patch
from editkit_core.errors import ExportError
from editkit_core.models.editable import EditableModel
from editkit_core.numerics.contexts import sample_contexts
from editkit_core.numerics.covariance import load_covariance
from editkit_core.numerics.history import earlier_keys
from editkit_core.numerics.window import averaged_keys
from editkit_core.numerics.window_params import WindowParams
from editkit_core.patch.apply import apply_patch
from editkit_core.patch.dropping import without
from editkit_core.patch.format import DenseEntry, LowRankEntry
from editkit_core.patch.io import to_pieces
from editkit_core.testing.models import tiny_model
from editkit_emmet.delta import compute_delta as emmet
from editkit_emmet.params import EmmetParams
from editkit_memit.delta import compute_delta as memit
from editkit_memit.params import MemitParams
from editkit_pmet.delta import compute_delta as pmet
from editkit_pmet.params import PmetParams

REQUESTS = (
    EditRequest(prompt="The capital of {} is", subject="Norway", target_new="old Lima"),
    EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru"),
    EditRequest(prompt="The king of {} was a", subject="Peru", target_new="mill"),
    EditRequest(prompt="The river of {} is", subject="the mill", target_new="old"),
)
EARLIER = (EditRequest(prompt="The winter of {} is", subject="Lima", target_new="river"),)
WEIGHT = 0.5
WINDOW = {"layers": (0, 1, 2), "v_steps": 3, "contexts": ((4, 2),), "covariance_ridge": 1e-3}
JOINT = {**WINDOW, "layers": (1,), "v_insertion": "joint"}
MEMIT = MemitParams(covariance_weight=WEIGHT, **WINDOW)
PMET = PmetParams(covariance_weight=WEIGHT, **WINDOW)
ALPHAEDIT = AlphaEditParams(
    layers=(0, 1, 2), v_steps=3, contexts=((4, 2),), null_energy=0.3, ridge=WEIGHT
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("gpt2", n_layers=3)


@pytest.fixture(scope="module")
def memit_patch(model: EditableModel, folder: Path) -> Patch:
    return edit(memit, model, MEMIT, folder)


def edit(
    compute: object,
    model: EditableModel,
    params: WindowParams,
    folder: Path,
    requests: Sequence[EditRequest] = REQUESTS,
    stack: tuple[Patch, ...] = (),
) -> Patch:
    sites = tuple(model.site(layer) for layer in params.window(model.n_layers))
    context = EditContext(statistics_dir=folder, stack=stack)
    return compute(model, requests, sites, params, context)  # type: ignore[operator, no-any-return]


def keys_seen(model: EditableModel, patch: Patch, params: WindowParams) -> list[Tensor]:
    """Read the keys of each layer again, with the layers below really written."""
    contexts = sample_contexts(model, params.contexts, seed=0)
    found = []
    for number, entry in enumerate(patch.weight_entries):
        below = attrs.evolve(patch, entries=patch.entries[:number]) if number else None
        applied = apply_patch(model, below, mode="overlay", check_base=False) if below else None
        found.append(averaged_keys(model, REQUESTS, entry.site, contexts, params))
        if applied:
            applied.revert()
    return found


def near(patch: Patch, expected: Sequence[Tensor]) -> None:
    """Check each layer's change."""
    for entry, change in zip(patch.weight_entries, expected, strict=True):
        assert float((entry.delta() - change).norm() / change.norm()) < 2e-5


def solved(
    patch: Patch, keys: Sequence[Tensor], moments: Sequence[Tensor], kept: list[int]
) -> list[Tensor]:
    """Return R_k K_kᵀ (λ C + K_k K_kᵀ)⁻¹ of each layer, R as the patch stores it."""
    made = []
    for entry, across, moment in zip(patch.weight_entries, keys, moments, strict=True):
        assert isinstance(entry, LowRankEntry)
        missing, some = torch.tensor(entry.u).double()[:, kept], across[:, kept]
        made.append(torch.linalg.solve(WEIGHT * moment + some @ some.T, some @ missing.T).T)
    return made


@pytest.mark.parametrize("gone", [[0], [2], [1, 3]])
@pytest.mark.parametrize(
    ("compute", "params"),
    [
        (memit, MEMIT),
        (memit, MemitParams(covariance_weight=WEIGHT, **JOINT)),
        (pmet, PMET),
        (emmet, EmmetParams(slack=WEIGHT, covariance_weight=1.0, **{**WINDOW, "layers": (1,)})),
    ],
    ids=["memit", "memit-joint", "pmet", "emmet-slack"],
)
def test_drop_one_fact_resolve_equals_fresh_solve(
    model: EditableModel, folder: Path, compute: object, params: WindowParams, gone: list[int]
) -> None:
    patch = edit(compute, model, params, folder)
    moments = []
    for entry in patch.weight_entries:
        c = load_covariance(model, entry.site, mode="auto", folder=folder, ridge=1e-3)
        width = model.weight(entry.site).shape[1]
        moments.append(torch.linalg.inv(c.solve(torch.eye(width, dtype=torch.float64))))
    kept = [i for i in range(len(REQUESTS)) if i not in gone]
    rest = without(patch, [REQUESTS[i] for i in gone])
    near(rest, solved(patch, keys_seen(model, patch, params), moments, kept))


@pytest.mark.parametrize("after", [False, True], ids=["alone", "after-a-patch"])
def test_drop_one_fact_resolve_equals_fresh_solve_for_alphaedit(
    model: EditableModel, folder: Path, after: bool
) -> None:
    """X = [P (K Kᵀ + K_p K_pᵀ) + λ I]⁻¹ P K Rᵀ, Δ = Xᵀ, as the authors write it."""
    stack = (edit(alphaedit, model, ALPHAEDIT, folder, EARLIER),) if after else ()
    patch = edit(alphaedit, model, ALPHAEDIT, folder, stack=stack)
    sites = [entry.site for entry in patch.weight_entries]
    spaces = null_spaces_of(model, sites, ALPHAEDIT, EditContext(statistics_dir=folder))
    kept, expected = [0, 1, 3], []
    for entry, space, across in zip(
        patch.weight_entries, spaces, keys_seen(model, patch, ALPHAEDIT), strict=True
    ):
        assert isinstance(entry, LowRankEntry)
        missing, some = torch.tensor(entry.u).double()[:, kept], across[:, kept]
        gram = some @ some.T
        if after:
            past = earlier_keys(entry.site, METHOD, stack)
            gram = gram + past @ past.T
        unit = torch.eye(len(gram), dtype=torch.float64)
        p = space.project(unit)
        x = torch.linalg.solve(p @ gram + WEIGHT * unit, p @ some @ missing.T)
        expected.append(x.T)
    near(without(patch, [REQUESTS[2]]), expected)


def test_evidence_of_alphaedit_is_what_its_layers_were_solved_with(
    model: EditableModel, folder: Path
) -> None:
    """A layer's keys depend on the layers below alone: those of the edited model are the same."""
    patch = edit(alphaedit, model, ALPHAEDIT, folder)
    for block, keys in zip(patch.evidence, keys_seen(model, patch, ALPHAEDIT), strict=True):
        torch.testing.assert_close(torch.tensor(block.keys), keys.T.float(), rtol=1e-5, atol=1e-6)


def test_dropping_from_a_file_is_dropping_from_memory(memit_patch: Patch, tmp_path: Path) -> None:
    path = tmp_path / "batch.editkit.safetensors"
    memit_patch.save(path)
    loaded = Patch.load(path)
    assert b"".join(to_pieces(loaded)) == path.read_bytes()
    rest = without(loaded, [REQUESTS[1]])
    assert rest.id == without(memit_patch, [REQUESTS[1]]).id


def test_two_facts_are_dropped_at_once_or_one_after_the_other(memit_patch: Patch) -> None:
    both = without(memit_patch, [REQUESTS[0], REQUESTS[3]])
    second = without(without(memit_patch, [REQUESTS[0]]), [REQUESTS[3]])
    near(second, [entry.delta() for entry in both.weight_entries])
    assert second.header.edits == both.header.edits == REQUESTS[1:3]
    assert [record["edits"] for record in second.header.metrics["dropped"]] == [1, 1]


def test_what_is_said_of_the_rest_holds_for_it(memit_patch: Patch, model: EditableModel) -> None:
    rest = without(memit_patch, [REQUESTS[1]])
    header, before = rest.header, memit_patch.header
    kept = [0, 2, 3]
    assert header.edits == tuple(REQUESTS[i] for i in kept)
    assert header.replaces == (before.id,)
    assert header.id != before.id
    assert header.params == before.params
    assert rest.canary is None
    for block, whole in zip(rest.evidence, memit_patch.evidence, strict=True):
        np.testing.assert_array_equal(block.keys, whole.keys[kept])
        np.testing.assert_array_equal(block.values, whole.values[kept])
    for name in ("p_target_before", "p_target_with_value", "updates"):
        assert header.metrics[name] == [before.metrics[name][i] for i in kept]
    assert not {"missing_left", "p_target_after"} & set(header.metrics)
    for row, entry in zip(header.metrics["layers"], rest.weight_entries, strict=True):
        size = entry.delta().norm() / model.weight(entry.site).double().norm()
        assert row["delta_norm_relative"] == pytest.approx(float(size), rel=1e-4)
        assert set(row) == {"layer", "covariance", "delta_norm_relative"}
    (record,) = header.metrics["dropped"]
    assert (record["edits"], record["from"], record["way"]) == (1, before.id, "solved again")
    assert max(record["error"]) < 1e-3


def test_values_met_exactly_are_refused_and_left_out_only_when_asked(
    model: EditableModel, folder: Path
) -> None:
    params = EmmetParams(slack=0.0, **{**WINDOW, "layers": (1,)})
    patch = edit(emmet, model, params, folder)
    with pytest.raises(ExportError, match="no slack"):
        without(patch, [REQUESTS[1]])
    rest = without(patch, [REQUESTS[1]], approximate=True)
    (entry,), (whole,) = rest.weight_entries, patch.weight_entries
    (keys,) = keys_seen(model, patch, params)
    kept = keys[:, [0, 2, 3]]
    torch.testing.assert_close(entry.delta() @ kept, whole.delta() @ kept, rtol=1e-3, atol=1e-4)
    assert max(rest.header.metrics["dropped"][0]["effect"]) < 1e-3


def test_rows_left_out_say_how_much_they_gave_the_others(
    memit_patch: Patch, model: EditableModel
) -> None:
    rest = without(memit_patch, [REQUESTS[1]], approximate=True)
    (record,) = rest.header.metrics["dropped"]
    assert record["way"] == "rows left out"
    assert "error" not in record
    keys = keys_seen(model, memit_patch, MEMIT)
    for number, effect in enumerate(record["effect"]):
        some = keys[number][:, [0, 2, 3]]
        after, before = (p.weight_entries[number].delta() @ some for p in (rest, memit_patch))
        assert effect == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-3)


@pytest.mark.parametrize("approximate", [False, True])
def test_nothing_is_left_when_all_facts_go(memit_patch: Patch, approximate: bool) -> None:
    with pytest.raises(ExportError, match="would be left"):
        without(memit_patch, REQUESTS, approximate=approximate)


def test_a_batch_without_its_keys_is_refused(memit_patch: Patch) -> None:
    bare = attrs.evolve(memit_patch, evidence=())
    with pytest.raises(ExportError, match="does not hold the keys"):
        without(bare, [REQUESTS[0]])


def test_a_batch_whose_keys_are_others_is_refused(memit_patch: Patch) -> None:
    swapped = [attrs.evolve(block, keys=block.keys[::-1]) for block in memit_patch.evidence]
    with pytest.raises(ExportError, match="no solve of the keys"):
        without(attrs.evolve(memit_patch, evidence=tuple(swapped)), [REQUESTS[0]], approximate=True)


def test_a_batch_stored_as_a_full_matrix_is_refused(memit_patch: Patch) -> None:
    full = [
        DenseEntry(site=entry.site, delta=entry.delta().float().numpy())
        for entry in memit_patch.weight_entries
    ]
    with pytest.raises(ExportError, match=r"weight\.dense/1"):
        without(attrs.evolve(memit_patch, entries=tuple(full)), [REQUESTS[0]])
