"""KN on tiny random models."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch

from editkit_core import EditContext, EditRequest
from editkit_core.errors import (
    InvalidParameterError,
    InvalidRequestError,
    LayerOutOfRangeError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.models.orientation import out_in, to_out_in
from editkit_core.models.text import pad_batch
from editkit_core.models.trace import record
from editkit_core.patch.apply import apply_patch
from editkit_core.patch.format import ColumnsEntry, Patch
from editkit_core.testing.models import TINY_ENCODER_DECODERS, TINY_FAMILIES, tiny_model
from editkit_kn.delta import compute_delta
from editkit_kn.locate import locate
from editkit_kn.params import KnParams

REQUESTS = (
    EditRequest(
        prompt="The capital of {} is", subject="Norway", target_new="Lima", target_true="Oslo"
    ),
    EditRequest(prompt="{} speaks", subject="Brazil", target_new="Peru", target_true="old king"),
)
PARAMS = KnParams(phrasings="none", nodes=4, max_neurons=5)


def edit(
    model: EditableModel, requests: tuple[EditRequest, ...] = REQUESTS, **changes: Any
) -> Patch:  # Any: values of any parameter
    params = attrs.evolve(PARAMS, **changes)
    context = EditContext()
    return compute_delta(model, requests, locate(model, requests, params, context), params, context)


def columns_of(patch: Patch) -> list[ColumnsEntry]:
    return [entry for entry in patch.entries if isinstance(entry, ColumnsEntry)]


def last_logits(model: EditableModel, text: str) -> torch.Tensor:
    return model.logits(pad_batch([model.encode(text).ids], model.pad_id))[0, -1]


@pytest.mark.parametrize("family", sorted([*TINY_FAMILIES, *TINY_ENCODER_DECODERS]))
def test_columns_only(family: str) -> None:
    model = tiny_model(family)
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    patch = edit(model)
    applied = apply_patch(model, patch, mode="merge")
    named = {entry.site.parameter: entry for entry in columns_of(patch)}
    assert named
    for name, old in before.items():
        if name not in named:
            assert torch.equal(model.parameter(name), old)
            continue
        entry = named[name]
        new = model.weight(entry.site)
        was = to_out_in(model.module(entry.site.module), old)
        changed = (new != was).any(dim=0).nonzero()[:, 0].tolist()
        assert changed == entry.columns.tolist()
    applied.revert()


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("gpt2")
    before, state = model.state_digest(), torch.get_rng_state()
    edit(model, phrasings="contexts", contexts=((3, 2),))
    assert model.state_digest() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())


def test_a_column_is_the_difference_of_directions_at_its_own_norm() -> None:
    model = tiny_model("llama")
    patch = edit(model, REQUESTS[:1], lambda_old=0.5, lambda_new=2.0)
    head = out_in(model.module("lm_head")).detach()
    pairs = [model.encode_pair(REQUESTS[0].text, word) for word in ("Oslo", "Lima")]
    old, new = (head[pair.target_ids[0]] for pair in pairs)
    for entry in columns_of(patch):
        with torch.no_grad(), record(model.model, [entry.site.module], inputs=True) as seen:
            model.model(input_ids=torch.tensor([pairs[0].prompt_ids]))
        for place, number in enumerate(entry.columns.tolist()):
            size = model.weight(entry.site)[:, number].norm()
            sign = seen[entry.site.module][0, -1, number].sign()
            expected = sign * size * (2.0 * new / new.norm() - 0.5 * old / old.norm())
            made = torch.from_numpy(np.array(entry.values[:, place]))
            torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)


def test_logit_direction_last_layer() -> None:
    """With no norm before the head the new answer's logit rises by Σ |a_i| λ2 ‖W_i‖ ‖e‖."""
    model = tiny_model("llama")
    model.model.model.norm = torch.nn.Identity()
    request = REQUESTS[0]
    patch = edit(model, (request,), layers=(2,), lambda_old=0.0)
    (entry,) = columns_of(patch)
    token = model.encode_pair(request.text, request.target_new).target_ids[0]
    before = last_logits(model, request.text)
    with torch.no_grad(), record(model.model, [entry.site.module], inputs=True) as seen:
        model.model(input_ids=torch.tensor([model.encode(request.text).ids]))
    a = seen[entry.site.module][0, -1, entry.columns.tolist()]
    sizes = model.weight(entry.site)[:, entry.columns.tolist()].norm(dim=0)
    e = out_in(model.module("lm_head"))[token]
    applied = apply_patch(model, patch, mode="merge")
    rise = last_logits(model, request.text)[token] - before[token]
    applied.revert()
    assert float(rise) == pytest.approx(float((a.abs() * sizes).sum() * e.norm()), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_erase_restore_bitexact(dtype: torch.dtype) -> None:
    model = tiny_model("gpt2")
    model.model.to(dtype)
    before = model.state_digest()
    patch = edit(model, operation="erase")
    applied = apply_patch(model, patch, mode="merge")
    for entry in columns_of(patch):
        erased = model.weight(entry.site)[:, entry.columns.tolist()]
        assert torch.equal(erased, torch.zeros_like(erased))
    assert model.state_digest() != before
    applied.revert()
    assert model.state_digest() == before


def test_erasing_a_column_that_a_patch_changed_leaves_nothing_of_it() -> None:
    model = tiny_model("gpt2")
    first = edit(model, REQUESTS[:1])
    below = apply_patch(model, first, mode="merge")
    context = EditContext(stack=(first,))
    params = attrs.evolve(PARAMS, operation="erase")
    sites = locate(model, REQUESTS[:1], params, context)
    second = compute_delta(model, REQUESTS[:1], sites, params, context)
    above = apply_patch(model, second, mode="merge")
    for entry in columns_of(second):
        left = model.weight(entry.site)[:, entry.columns.tolist()]
        assert float(left.abs().max()) < 1e-6
    above.revert()
    below.revert()


def test_norms_are_those_of_the_base_on_a_merged_stack() -> None:
    model = tiny_model("gpt2")
    first = edit(model, REQUESTS[:1], lambda_old=0.0, lambda_new=30.0)
    applied = apply_patch(model, first, mode="merge")
    second = edit(model, REQUESTS[:1], lambda_old=0.0, lambda_new=1.0)
    applied.revert()
    for entry in columns_of(second):
        base = model.weight(entry.site)[:, entry.columns.tolist()].norm(dim=0)
        made = torch.from_numpy(np.linalg.norm(entry.values, axis=0))
        torch.testing.assert_close(made, base, rtol=1e-5, atol=1e-6)


def test_suppressing_the_first_neuron_makes_the_old_answer_less_likely() -> None:
    model = tiny_model("gpt2")
    request = REQUESTS[0]
    token = model.encode_pair(request.text, "Oslo").target_ids[0]
    before = last_logits(model, request.text).softmax(dim=0)[token]
    patch = edit(model, (request,), operation="erase", max_neurons=1)
    applied = apply_patch(model, patch, mode="merge")
    after = last_logits(model, request.text).softmax(dim=0)[token]
    applied.revert()
    assert float(after) < float(before)


def test_a_batch_is_the_sum_of_its_edits() -> None:
    model = tiny_model("gpt2")
    both = {e.site.parameter: e.delta() for e in columns_of(edit(model))}
    summed: dict[str, torch.Tensor] = {}
    for request in REQUESTS:
        for entry in columns_of(edit(model, (request,))):
            name = entry.site.parameter
            summed[name] = summed.get(name, torch.zeros(entry.shape)) + entry.delta()
    assert both.keys() == summed.keys()
    for name, delta in both.items():
        torch.testing.assert_close(delta, summed[name].double(), rtol=1e-6, atol=1e-7)


def test_neurons_and_completeness_are_told_in_the_patch() -> None:
    patch = edit(tiny_model("gpt2"))
    told = patch.header.metrics["edits"]
    assert [len(edit["neurons"]) for edit in told] == [5, 5]
    assert all(edit["completeness_error"] < 0.01 for edit in told)
    layers = {layer for edit in told for layer, _, _ in edit["neurons"]}
    assert layers == {entry.site.layer for entry in columns_of(patch)}
    assert all(len(block.keys) == 2 for block in patch.evidence)


def test_paraphrases_are_asked_only_when_that_is_wanted() -> None:
    request = attrs.evolve(REQUESTS[0], paraphrases=("The king of {} was in",))
    model = tiny_model("gpt2")
    alone = edit(model, (REQUESTS[0],))
    same = edit(model, (request,))
    other = edit(model, (request,), phrasings="paraphrases", share=1.0, max_neurons=100)
    assert [e.columns.tolist() for e in columns_of(alone)] == [
        e.columns.tolist() for e in columns_of(same)
    ]
    assert other.header.metrics["edits"][0]["neurons"] != same.header.metrics["edits"][0]["neurons"]


def test_requires_ground_truth() -> None:
    request = attrs.evolve(REQUESTS[0], target_true=None)
    with pytest.raises(InvalidRequestError, match="Give target_true"):
        edit(tiny_model("gpt2"), (request,))


def test_two_equal_answers_are_refused() -> None:
    request = attrs.evolve(REQUESTS[0], target_true="Lima")
    with pytest.raises(InvalidRequestError, match="both 'Lima'"):
        edit(tiny_model("gpt2"), (request,))


def test_a_layer_outside_the_model_is_refused() -> None:
    with pytest.raises(LayerOutOfRangeError, match="no layer 9"):
        edit(tiny_model("gpt2"), layers=(1, 9))


def test_a_trace_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="finds its neurons by itself"):
        locate(tiny_model("gpt2"), REQUESTS, PARAMS, EditContext(locate="trace"))


def test_no_requests_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="nothing to edit"):
        locate(tiny_model("gpt2"), (), PARAMS, EditContext())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nodes", 0),
        ("rule", "simpson"),
        ("layers", (2, 1)),
        ("threshold_ratio", 0.0),
        ("contexts", ((3,),)),
    ],
)
def test_a_parameter_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidParameterError, match=name):
        KnParams(**{name: value})
