"""MEMIT on tiny random models."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch

from editkit_core import EditContext, EditRequest
from editkit_core.errors import InvalidRequestError, LayerOutOfRangeError, UnsupportedModelError
from editkit_core.models.editable import EditableModel
from editkit_core.models.trace import record
from editkit_core.numerics.contexts import sample_contexts
from editkit_core.numerics.covariance import load_covariance
from editkit_core.numerics.window import averaged_keys
from editkit_core.patch.apply import apply_patch
from editkit_core.patch.format import Patch
from editkit_core.testing.models import TINY_FAMILIES, tiny_model
from editkit_memit.delta import compute_delta
from editkit_memit.locate import locate
from editkit_memit.params import MemitParams

REQUESTS = (
    EditRequest(prompt="The capital of {} is", subject="Norway", target_new="old Lima"),
    EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru"),
    EditRequest(prompt="The king of {} was a", subject="Peru", target_new="mill"),
)
PARAMS = MemitParams(
    layers=(0, 1), v_steps=6, covariance="identity", covariance_weight=0.5, contexts=((4, 2),)
)


def edit(
    model: EditableModel, requests: tuple[EditRequest, ...] = REQUESTS, **changes: object
) -> Patch:
    params = attrs.evolve(PARAMS, **changes)
    context = EditContext()
    return compute_delta(model, requests, locate(model, requests, params, context), params, context)


def deltas(patch: Patch) -> list[torch.Tensor]:
    return [entry.delta() for entry in patch.weight_entries]


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_each_layer_solves_the_normal_equations_on_the_model_edited_below(family: str) -> None:
    """Keys and states are read again here, with the layers below really written."""
    model = tiny_model(family)
    patch = edit(model)
    contexts = sample_contexts(model, PARAMS.contexts, seed=0)
    values = torch.from_numpy(np.array(patch.evidence[0].values)).double()  # (n, d)
    block = model.family.block(1)
    for number, entry in enumerate(patch.weight_entries):
        below = attrs.evolve(patch, entries=patch.entries[:number]) if number else None
        applied = apply_patch(model, below, mode="merge", check_base=False) if below else None
        keys = averaged_keys(model, REQUESTS, entry.site, contexts, PARAMS)
        states = []
        for request in REQUESTS:
            ids = torch.tensor([model.encode(request.text).ids])
            with torch.no_grad(), record(model.model, [block]) as seen:
                model.model(input_ids=ids)
            states.append(seen[block][0, model.subject_position(request)].double())
        if applied:
            applied.revert()
        missing = (values - torch.stack(states)).T / (2 - number)  # (d, n)
        left = entry.delta() @ (0.5 * torch.eye(len(keys)) + keys @ keys.T)
        right = missing @ keys.T
        assert float((left - right).norm() / right.norm()) < 2e-3  # values are stored as float16


def test_residual_decreases() -> None:
    model = tiny_model("gpt2")
    patch = edit(model)
    first = patch.header.metrics["layers"][0]["missing_mean"]
    assert np.mean(patch.header.metrics["missing_left"]) < 0.7 * first


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("gpt2")
    before, state = model.state_digest(), torch.get_rng_state()
    edit(model)
    assert model.state_digest() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.model.modules())


def test_permutation_invariance() -> None:
    model = tiny_model("gpt2")
    one, other = edit(model), edit(model, REQUESTS[::-1])
    for a, b in zip(deltas(one), deltas(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_one_fact_at_one_layer_is_rome_shrunk_by_its_key() -> None:
    model = tiny_model("gpt2")
    request = REQUESTS[:1]
    patch = edit(model, request, layers=(1,))
    site = model.site(1)
    contexts = sample_contexts(model, PARAMS.contexts, seed=0)
    key = averaged_keys(model, request, site, contexts, PARAMS)[:, 0]
    kappa = float(key @ key)  # C is the identity
    change = deltas(patch)[0]
    value = torch.from_numpy(np.array(patch.evidence[0].values[0])).double()
    with torch.no_grad(), record(model.model, [model.family.block(1)]) as seen:
        model.model(input_ids=torch.tensor([model.encode(request[0].text).ids]))
    state = seen[model.family.block(1)][0, model.subject_position(request[0])].double()
    rome = torch.outer(value - state, key) / kappa
    expected = rome * kappa / (0.5 + kappa)
    torch.testing.assert_close(change, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_a_large_batch_is_stored_as_a_full_matrix() -> None:
    model = tiny_model("gpt2")
    words = ["Norway", "Peru", "Brazil", "Lima", "Oslo", "Winter", "king", "mill", "river"]
    requests = tuple(
        EditRequest(prompt=f"{head} {{}} is", subject=word, target_new="Peru")
        for word in words
        for head in ("The old", "Near the", "In the town of", "A story about")
    )
    patch = edit(model, requests, v_steps=2, layers=(1,))
    assert patch.entries[0].kind == "weight.dense/1"
    assert edit(model).entries[0].kind == "weight.low_rank/1"


def test_duplicate_subject_detection() -> None:
    model = tiny_model("gpt2")
    other = attrs.evolve(REQUESTS[0], target_new="Peru")
    with pytest.raises(InvalidRequestError, match=r"Requests 0 and 2 .*'old Lima' and 'Peru'"):
        edit(model, (*REQUESTS[:2], other))


def test_two_phrasings_of_one_relation_with_different_targets_are_refused() -> None:
    one = attrs.evolve(REQUESTS[0], relation="capital")
    other = attrs.evolve(one, prompt="{} has the capital", target_new="Peru")
    with pytest.raises(InvalidRequestError, match="relation capital"):
        edit(tiny_model("gpt2"), (one, other))


def test_a_layer_outside_the_model_is_refused() -> None:
    with pytest.raises(LayerOutOfRangeError, match="no layer 9"):
        edit(tiny_model("gpt2"), layers=(1, 9))


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="GRACE or MEND"):
        edit(tiny_model("t5"))


def test_statistics_are_solved_with(tmp_path: object) -> None:
    model = tiny_model("gpt2")
    context = EditContext(statistics_dir=tmp_path)  # type: ignore[arg-type]  # pytest's own type
    params = attrs.evolve(PARAMS, covariance="auto", layers=(1,), covariance_ridge=1e-3)
    patch = compute_delta(model, REQUESTS, (model.site(1),), params, context)
    covariance = load_covariance(
        model, model.site(1), mode="required", folder=context.statistics_dir, ridge=1e-3
    )
    contexts = sample_contexts(model, params.contexts, seed=0)
    keys = averaged_keys(model, REQUESTS, model.site(1), contexts, params)
    factor = covariance.factor
    assert factor is not None
    c = factor.lower @ factor.lower.T
    change = patch.weight_entries[0].delta()
    system = 0.5 * c + keys @ keys.T
    rows = change @ system  # = R Kᵀ: lies in the span of the keys
    outside = rows - rows @ torch.linalg.pinv(keys.T) @ keys.T
    assert float(outside.norm() / rows.norm()) < 1e-4


def test_a_later_part_solves_what_is_missing_and_protects_the_keys_before_it() -> None:
    """Keys, states and the part's system are made again here, the first part really written."""
    model = tiny_model("gpt2")
    patch = edit(model, layers=(1,), edits_at_once=2)
    assert patch.header.metrics["parts"] == [2, 1]
    assert len(patch.weight_entries) == 1
    contexts = sample_contexts(model, PARAMS.contexts, seed=0)
    site = model.site(1)
    keys = averaged_keys(model, REQUESTS, site, contexts, PARAMS)
    first = edit(model, REQUESTS[:2], layers=(1,))
    applied = apply_patch(model, first, mode="merge", check_base=False)
    value = torch.from_numpy(np.array(patch.evidence[0].values[2])).double()
    with torch.no_grad(), record(model.model, [model.family.block(1)]) as seen:
        model.model(input_ids=torch.tensor([model.encode(REQUESTS[2].text).ids]))
    place = model.subject_position(REQUESTS[2])
    missing = (value - seen[model.family.block(1)][0, place].double())[:, None]
    applied.revert()
    last = deltas(patch)[0] - deltas(first)[0]
    left = last @ (0.5 * torch.eye(len(keys)) + keys @ keys.T)
    right = missing @ keys[:, 2:].T
    assert float((left - right).norm() / right.norm()) < 2e-3  # values are stored as float16


def test_parts_hold_as_one_batch_does() -> None:
    model = tiny_model("gpt2")
    whole, parts = edit(model), edit(model, edits_at_once=1)
    assert parts.header.metrics["parts"] == [1, 1, 1]
    assert [entry.rank for entry in parts.weight_entries] == [3, 3]
    assert parts.header.edits == REQUESTS
    one, other = (np.array(p.header.metrics["missing_left"]) for p in (whole, parts))
    missing = whole.header.metrics["layers"][0]["missing_mean"]
    assert one.mean() < 0.7 * missing
    assert other.mean() < 0.7 * missing


@pytest.mark.parametrize("insertion", ["rank_one", "joint"])
def test_parts_leave_the_model_as_it_was(insertion: str) -> None:
    model = tiny_model("gpt2")
    before = model.state_digest()
    edit(model, edits_at_once=2, v_insertion=insertion, layers=(1,))
    assert model.state_digest() == before
    assert not any(module._forward_hooks for module in model.model.modules())


def test_history_protects_the_keys_of_earlier_patches() -> None:
    model = tiny_model("gpt2")
    first = edit(model, REQUESTS[:1], layers=(1,))
    params = attrs.evolve(PARAMS, layers=(1,), covariance_weight=1e-6)
    context = EditContext(stack=(first,))
    sites = locate(model, REQUESTS[1:], params, context)
    free = compute_delta(model, REQUESTS[1:], sites, params, context)
    held = compute_delta(model, REQUESTS[1:], sites, attrs.evolve(params, history=True), context)
    assert held.header.metrics["protected_edits"] == 1
    assert "protected_edits" not in free.header.metrics
    key = torch.from_numpy(np.array(first.evidence[0].keys[0])).double()
    assert float((deltas(held)[0] @ key).norm()) < 1e-3 * float((deltas(free)[0] @ key).norm())


def test_the_last_of_several_requests_about_a_fact_is_kept_when_that_is_asked_for() -> None:
    model = tiny_model("gpt2")
    again = attrs.evolve(REQUESTS[0], target_new="Peru")
    patch = edit(model, (*REQUESTS, again), duplicates="keep_last")
    assert patch.header.edits == (*REQUESTS[1:], again)
    alone = edit(model, (*REQUESTS[1:], again))
    for a, b in zip(deltas(patch), deltas(alone), strict=True):
        assert torch.equal(a, b)
