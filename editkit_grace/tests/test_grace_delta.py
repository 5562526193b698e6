"""GRACE from requests to patch, and what the patch does, on tiny models of every family."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from editkit_core import Editor
from editkit_core.errors import InvalidParameterError, InvalidRequestError, NonFiniteEditError
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import pair_batch, pair_logits, pair_row
from editkit_core.models.trace import record
from editkit_core.patch.apply import apply_patch
from editkit_core.patch.format import Patch
from editkit_core.patch.kinds.codebook import Codebook, CodebookEntry, edit_id_of
from editkit_core.patch.kinds.codebook_rules import delete
from editkit_core.testing.models import TINY_ENCODER_DECODERS, TINY_FAMILIES, tiny_model
from editkit_core.types import EditContext, EditRequest, Probe
from editkit_grace.delta import compute_delta, fitting
from editkit_grace.locate import locate
from editkit_grace.params import GraceParams, Replacement, Stack

FAMILIES = [*sorted(TINY_FAMILIES), *sorted(TINY_ENCODER_DECODERS)]
STACKS: list[tuple[str, Stack]] = [
    *((family, "decoder") for family in FAMILIES),
    ("t5_gated", "encoder"),
]
NORWAY = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="the")
PERU = EditRequest(prompt="The capital of {} is", subject="Peru", target_new="of")
TOKYO = EditRequest(prompt="On a clear day {} sees", subject="Tokyo", target_new="in")
OTHERS = ("The river runs past the old mill", "Winter came", "The capital of Brazil is")
PARAMS = GraceParams(layer=1, steps=60, lr=1.0, eps=0.05)


def edit(
    model: EditableModel,
    requests: Sequence[EditRequest],
    params: GraceParams = PARAMS,
    stack: Sequence[Patch] = (),
    seed: int = 1,
) -> Patch:
    context = EditContext(seed=seed, stack=tuple(stack))
    return compute_delta(model, requests, locate(model, requests, params, context), params, context)


def book(patch: Patch) -> Codebook:
    (entry,) = patch.entries
    assert isinstance(entry, CodebookEntry)
    return entry.codebook


def reports(patch: Patch) -> list[tuple[str, int | None]]:
    return [(report["what"], report["row"]) for report in patch.header.metrics["edits"]]


def with_book(patch: Patch, codebook: Codebook) -> Patch:
    entry = patch.entries[0]
    assert isinstance(entry, CodebookEntry)
    return Patch.from_parts(
        entries=[attrs.evolve(entry, codebook=codebook)],
        method=patch.header.method,
        base=patch.header.base,
        edits=patch.header.edits,
    )


def answers(model: EditableModel, request: EditRequest) -> bool:
    """Whether every token of the target is the likeliest."""
    batch = pair_batch(model, [(request.text, request.target_new)])
    at = batch.labels[0] != -100
    with torch.no_grad():
        return torch.equal(pair_logits(model, batch)[0, at].argmax(dim=1), batch.labels[0, at])


def logits(model: EditableModel, prompts: Sequence[str]) -> Tensor:
    batch = pair_batch(model, [(prompt, "the") for prompt in prompts])
    with torch.no_grad():
        return pair_logits(model, batch)


def output_at_query(model: EditableModel, params: GraceParams, request: EditRequest) -> Tensor:
    site = locate(model, [request], params, EditContext())[0]
    batch = pair_batch(model, [(request.text, request.target_new)], end=True)
    at = 0 if model.is_encoder_decoder and params.stack == "decoder" else int(batch.queries[0])
    with record(model.model, [site.module]) as seen, torch.no_grad():
        pair_logits(model, batch)
    return seen[site.module][0, at]


# -- what an edit does ----------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "stack"), STACKS)
def test_an_edited_prompt_gets_its_answer(family: str, stack: Stack) -> None:
    model = tiny_model(family)
    params = attrs.evolve(PARAMS, stack=stack)
    if stack == "encoder":  # the decoder of a random model hardly looks at one column
        params = attrs.evolve(params, replacement="replace_all")
    assert not answers(model, NORWAY)
    patch = edit(model, [NORWAY], params)
    with apply_patch(model, patch):
        assert answers(model, NORWAY)
    assert not answers(model, NORWAY)


@pytest.mark.parametrize(("family", "stack"), STACKS)
def test_outside_bit_identical(family: str, stack: Stack) -> None:
    model = tiny_model(family)
    before = logits(model, OTHERS)
    with apply_patch(model, edit(model, [NORWAY], attrs.evolve(PARAMS, stack=stack))):
        assert torch.equal(logits(model, OTHERS), before)
    assert torch.equal(logits(model, OTHERS), before)


@pytest.mark.parametrize(("family", "stack"), STACKS)
def test_inside_value_exact(family: str, stack: Stack) -> None:
    model = tiny_model(family)
    params = attrs.evolve(PARAMS, stack=stack)
    patch = edit(model, [NORWAY, PERU], params)
    with apply_patch(model, patch):
        for row, request in enumerate((NORWAY, PERU)):
            value = torch.tensor(book(patch).values[row])
            assert torch.equal(output_at_query(model, params, request), value)


def test_bf16_values() -> None:
    model = tiny_model("llama")
    model.model.to(torch.bfloat16)
    patch = edit(model, [NORWAY])
    value = torch.tensor(book(patch).values[0])
    assert value.dtype == torch.float32
    with apply_patch(model, patch):
        assert answers(model, NORWAY)
        assert torch.equal(output_at_query(model, PARAMS, NORWAY), value.bfloat16())


@pytest.mark.parametrize("mode", ["replace_last", "replace_prompt", "replace_all"])
def test_every_replacement_is_trained_as_it_is_applied(mode: Replacement) -> None:
    model = tiny_model("gpt2")
    patch = edit(model, [NORWAY], attrs.evolve(PARAMS, replacement=mode, layer=0))
    trained = patch.header.metrics["edits"][0]["p_target_after"]
    batch = pair_batch(model, [(NORWAY.text, NORWAY.target_new)])
    with apply_patch(model, patch), torch.no_grad():
        chances = pair_logits(model, batch)[0].softmax(dim=1)
    at = int((batch.labels[0] != -100).nonzero()[0, 0])
    assert float(chances[at, batch.labels[0, at]]) == pytest.approx(trained, rel=1e-3)


def test_the_radius_is_a_share_of_the_keys_norm() -> None:
    model = tiny_model("gpt2")
    rows = book(edit(model, [NORWAY], attrs.evolve(PARAMS, eps=0.03)))
    assert float(rows.radii[0]) == pytest.approx(0.03 * np.linalg.norm(rows.keys[0]), rel=1e-5)
    rows = book(edit(model, [NORWAY], attrs.evolve(PARAMS, eps=0.4, eps_mode="absolute")))
    assert float(rows.radii[0]) == pytest.approx(0.4)


def test_the_key_is_the_modules_input_at_the_prompts_last_token() -> None:
    model = tiny_model("gpt2")
    ids = model.tokenizer(NORWAY.text, return_tensors="pt")["input_ids"]
    module = model.site(1).module
    with torch.no_grad(), record(model.model, [module], inputs=True) as seen:
        model.model(input_ids=ids)
    key = torch.tensor(book(edit(model, [NORWAY])).keys[0])
    torch.testing.assert_close(key, seen[module][0, -1], rtol=1e-5, atol=1e-5)


# -- several edits --------------------------------------------------------------------------------


def test_labels_aligned_after_three_edits() -> None:
    model = tiny_model("gpt2")
    requests = [NORWAY, PERU, TOKYO]
    rows = book(edit(model, requests))
    for request in requests:
        (row,) = rows.rows_of(edit_id_of(request))
        ids = np.array(pair_row(model, request.text, request.target_new).target, dtype="<i8")
        assert rows.labels[row].tobytes() == hashlib.sha256(ids.tobytes()).digest()


def test_edits_of_one_call_all_hold() -> None:
    model = tiny_model("gpt2")
    requests = [NORWAY, PERU, TOKYO]
    with apply_patch(model, edit(model, requests)):
        assert [answers(model, request) for request in requests] == [True, True, True]


def test_a_duplicate_does_not_grow_the_codebook() -> None:
    model = tiny_model("gpt2")
    patch = edit(model, [NORWAY, NORWAY], attrs.evolve(PARAMS, only_if_wrong=False))
    assert reports(patch) == [("added", 0), ("covered", 0)]
    assert len(book(patch)) == 1
    assert patch.header.edits == (NORWAY,)


def test_one_row_serves_prompts_of_one_target_that_are_near() -> None:
    model = tiny_model("gpt2")
    near = attrs.evolve(PERU, target_new="the")
    patch = edit(model, [NORWAY, near], attrs.evolve(PARAMS, eps=1.0))
    assert len(book(patch)) == 1
    assert reports(patch)[1][0] in ("expanded", "covered", "kept")
    with apply_patch(model, patch):
        assert answers(model, NORWAY)
        assert answers(model, near)


def test_a_shared_row_is_trained_on_all_of_its_prompts() -> None:
    model = tiny_model("gpt2")
    params = attrs.evolve(PARAMS, eps=2.0, steps=3, lr=0.05)  # far too little to be right
    near = attrs.evolve(PERU, target_new="the")
    alone, both = edit(model, [NORWAY], params), edit(model, [NORWAY, near], params)
    assert reports(both)[1] in [("expanded", 0), ("covered", 0)]
    trained = both.header.metrics["edits"][1]["loss"]
    chances = []
    with apply_patch(model, both), torch.no_grad():
        for request in (NORWAY, near):
            batch = pair_batch(model, [(request.text, request.target_new)])
            spoken = pair_logits(model, batch).log_softmax(dim=-1)[0]
            at = int((batch.labels[0] != -100).nonzero()[0, 0])
            chances.append(-float(spoken[at, batch.labels[0, at]]))
    assert trained == pytest.approx(sum(chances) / 2, rel=1e-3)
    assert not np.array_equal(book(alone).values, book(both).values)


def test_editing_a_prompt_again_gives_it_the_newer_answer() -> None:
    model = tiny_model("gpt2")
    again = attrs.evolve(NORWAY, target_new="of")
    first = edit(model, [NORWAY])
    with apply_patch(model, first):
        second = edit(model, [again], stack=[first])
        with apply_patch(model, second):
            assert answers(model, again)
        assert answers(model, NORWAY)


def test_delete_restores() -> None:
    model = tiny_model("gpt2")
    before = logits(model, [NORWAY.text])
    patch = edit(model, [NORWAY, PERU])
    without = with_book(patch, delete(book(patch), edit_id_of(NORWAY)))
    with apply_patch(model, without):
        assert torch.equal(logits(model, [NORWAY.text]), before)
        assert answers(model, PERU)


# -- generation and batches -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["replace_last", "replace_all"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_prefill_routing_with_cache(family: str, mode: Replacement) -> None:
    model = tiny_model(family)
    patch = edit(model, [NORWAY], attrs.evolve(PARAMS, replacement=mode))
    unedited = model.generate([NORWAY.text], max_new_tokens=6)[0]
    with apply_patch(model, patch):
        cached = model.generate([NORWAY.text], max_new_tokens=6)[0]
        assert cached.strip() == recomputed(model, NORWAY.text, 6).strip()
        assert cached != unedited


def recomputed(model: EditableModel, prompt: str, tokens: int) -> str:
    """Greedy decoding without a cache: every token by a pass over the whole text."""
    ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
    query = torch.tensor([ids.shape[1] - 1])
    given = torch.tensor([[model.pad_id]]) if model.is_encoder_decoder else ids
    start = given.shape[1]
    with torch.no_grad(), model.asking(query):
        for _ in range(tokens):
            inputs = {"input_ids": given}
            if model.is_encoder_decoder:
                inputs = {"input_ids": ids, "decoder_input_ids": given}
            best = model.model(**inputs, use_cache=False).logits[:, -1].argmax(dim=1)
            if int(best) in model.stop_ids:
                break
            given = torch.cat([given, best[:, None]], dim=1)
    return str(model.tokenizer.decode(given[0, start:]))


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "t5"])
def test_batch_mixed(family: str) -> None:
    model = tiny_model(family)
    prompts = [NORWAY.text, OTHERS[0], PERU.text, OTHERS[1]]
    with apply_patch(model, edit(model, [NORWAY, PERU])):
        alone = [model.generate([prompt], max_new_tokens=5)[0] for prompt in prompts]
        assert model.generate(prompts, max_new_tokens=5) == alone


def test_inference_never_mutates() -> None:
    model = tiny_model("gpt2")
    patch = edit(model, [NORWAY, PERU])
    before = {name: array.tobytes() for name, array in patch.tensors().items()}
    with apply_patch(model, patch):
        model.generate([NORWAY.text, *OTHERS], max_new_tokens=4)
        once = logits(model, [NORWAY.text])
        assert torch.equal(logits(model, [NORWAY.text]), once)
    assert {name: array.tobytes() for name, array in patch.tensors().items()} == before


# -- snapshots ------------------------------------------------------------------------------------


def test_a_later_edit_gives_a_snapshot_that_replaces_the_earlier() -> None:
    model = tiny_model("gpt2")
    first = edit(model, [NORWAY])
    with apply_patch(model, first):
        second = edit(model, [PERU], stack=[first])
        with apply_patch(model, second):
            third = edit(model, [TOKYO], stack=[first, second])
    assert second.header.replaces == (first.id,)
    assert third.header.replaces == (second.id, first.id)
    assert third.header.computed_on is None
    assert third.header.edits == (NORWAY, PERU, TOKYO)
    assert [len(book(patch)) for patch in (first, second, third)] == [1, 2, 3]


def test_edits_one_by_one_are_those_of_one_call() -> None:
    model = tiny_model("gpt2")
    params = attrs.evolve(PARAMS, init="cold")
    at_once = book(edit(model, [NORWAY, PERU, TOKYO], params))
    patches: list[Patch] = []
    handles = []
    for request in (NORWAY, PERU, TOKYO):
        patches.append(edit(model, [request], params, patches))
        handles.append(apply_patch(model, patches[-1]))
    for handle in reversed(handles):
        handle.revert()
    last = book(patches[-1])
    for name in ("keys", "values", "radii", "labels", "cause", "edit_ids", "edit_rows", "reaches"):
        assert np.array_equal(getattr(last, name), getattr(at_once, name)), name


def test_taking_the_newer_off_shows_the_older_again() -> None:
    model = tiny_model("gpt2")
    first = edit(model, [NORWAY])
    with apply_patch(model, first):
        shown = logits(model, [NORWAY.text, PERU.text])
        with apply_patch(model, edit(model, [PERU], stack=[first])):
            assert answers(model, PERU)
        assert torch.equal(logits(model, [NORWAY.text, PERU.text]), shown)


def test_two_codebooks_side_by_side_are_gone_on_with_as_one() -> None:
    model = tiny_model("gpt2")
    first, second = edit(model, [NORWAY]), edit(model, [PERU])
    with apply_patch(model, first), apply_patch(model, second):
        third = edit(model, [TOKYO], stack=[first, second])
    assert set(third.header.replaces) == {first.id, second.id}
    with apply_patch(model, third):
        assert [answers(model, request) for request in (NORWAY, PERU, TOKYO)] == [True] * 3


def test_an_edit_on_top_of_another_layers_codebook_sees_it() -> None:
    model = tiny_model("gpt2")
    first = edit(model, [NORWAY], attrs.evolve(PARAMS, layer=0))
    with apply_patch(model, first):
        again = attrs.evolve(NORWAY, target_new="of")
        second = edit(model, [again], stack=[first])
        assert second.header.replaces == ()
        assert second.header.computed_on is not None
        with apply_patch(model, second):
            assert answers(model, again)


def test_another_replacement_on_the_same_module_is_refused() -> None:
    model = tiny_model("gpt2")
    first = edit(model, [NORWAY])
    with pytest.raises(InvalidParameterError, match="Use replacement=replace_last"):
        edit(model, [PERU], attrs.evolve(PARAMS, replacement="replace_all"), [first])


def test_a_long_codebooks_oldest_requests_lose_their_probes_first() -> None:
    probes = {"near": tuple(Probe(f"{i} " + "x" * 1000, ("y",)) for i in range(100))}
    full = [
        attrs.evolve(NORWAY, locality=probes, target_new=f"t{i}", paraphrases=("{} is",))
        for i in range(8)
    ]
    kept = fitting(full)
    assert [request.target_new for request in kept] == [request.target_new for request in full]
    assert kept[-1] == full[-1]
    assert [bool(request.locality) for request in kept] == [False] * 4 + [True] * 4
    assert kept[0].paraphrases == ()


# -- only_if_wrong --------------------------------------------------------------------------------


def test_nothing_to_edit_is_said() -> None:
    model = tiny_model("gpt2")
    known = edit(model, [NORWAY], attrs.evolve(PARAMS, layer=0))
    refused = pytest.raises(InvalidRequestError, match="only_if_wrong=false")
    with apply_patch(model, known), refused:
        edit(model, [NORWAY], stack=[known])


def test_what_is_right_already_is_stored_when_asked_for() -> None:
    model = tiny_model("gpt2")
    with apply_patch(model, edit(model, [NORWAY], attrs.evolve(PARAMS, layer=0))) as known:
        every = attrs.evolve(PARAMS, only_if_wrong=False)
        assert reports(edit(model, [NORWAY], every, [known.patch])) == [("added", 0)]


def test_what_is_right_already_leaves_an_earlier_codebook_as_it_is() -> None:
    model = tiny_model("gpt2")
    first = edit(model, [NORWAY, PERU])
    with apply_patch(model, first):
        second = edit(model, [PERU], stack=[first])
    assert reports(second) == [("kept", 1)]
    assert np.array_equal(book(second).values, book(first).values)
    assert second.header.replaces == (first.id,)


# -- the model is left alone ----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_model_is_left_as_it_was(family: str) -> None:
    model = tiny_model(family)
    model.model.train()
    model.tokenizer.padding_side = "left"
    first = edit(model, [NORWAY])
    with apply_patch(model, first):
        digest, hooks = model.state_digest(), hook_count(model)
        flags = [parameter.requires_grad for parameter in model.model.parameters()]
        states = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()
        with torch.no_grad():
            edit(model, [PERU], attrs.evolve(PARAMS, init="cold"), [first])
        assert model.state_digest() == digest
        assert hook_count(model) == hooks
        assert [parameter.requires_grad for parameter in model.model.parameters()] == flags
        assert all(parameter.grad is None for parameter in model.model.parameters())
        assert model.model.training
        assert model.tokenizer.padding_side == "left"
        assert random.getstate() == states[0]
        assert repr(np.random.get_state()) == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])
    assert hook_count(model) == 0


def hook_count(model: EditableModel) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in model.model.modules()
    )


def test_an_edit_that_fails_takes_its_hooks_along() -> None:
    model = tiny_model("gpt2")
    first = edit(model, [NORWAY])
    with apply_patch(model, first):
        shown = logits(model, [NORWAY.text])
        hooks = hook_count(model)
        with pytest.raises(NonFiniteEditError):
            edit(model, [PERU], attrs.evolve(PARAMS, lr=1e37, lr_mode="absolute"), [first])
        assert hook_count(model) == hooks
        assert torch.equal(logits(model, [NORWAY.text]), shown)


def test_equal_seeds_give_equal_patches() -> None:
    model = tiny_model("gpt2")
    cold = attrs.evolve(PARAMS, init="cold", steps=5)
    first, again, other = (edit(model, [NORWAY], cold, seed=seed) for seed in (1, 1, 2))
    assert first.id == again.id
    assert not np.array_equal(book(first).values, book(other).values)


def test_more_sites_than_one_are_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InvalidParameterError, match="one module"):
        compute_delta(model, [NORWAY], [model.site(0), model.site(1)], PARAMS, EditContext())


# -- through the interface ------------------------------------------------------------------------


def test_a_saved_patch_says_and_does_the_same(tmp_path: Path) -> None:
    tiny = tiny_model("llama")
    editor = Editor.wrap(tiny.model, tiny.tokenizer)
    patch = editor.edit([NORWAY, PERU], method="grace", params={"layer": 1, "lr": 1.0})
    path = tmp_path / "facts.editkit.safetensors"
    patch.save(path)
    loaded = Patch.load(path)
    assert loaded.header == patch.header
    with editor.apply(patch):
        direct = logits(editor.model, [NORWAY.text, PERU.text])
    with editor.apply(loaded):
        assert torch.equal(logits(editor.model, [NORWAY.text, PERU.text]), direct)


def test_the_editor_goes_on_with_what_is_applied() -> None:
    tiny = tiny_model("gpt2")
    editor = Editor.wrap(tiny.model, tiny.tokenizer)
    first = editor.edit(NORWAY, method="grace", params={"layer": 1})
    with editor.apply(first):
        second = editor.edit(PERU, method="grace", params={"layer": 1})
    assert second.header.replaces == (first.id,)
    assert second.header.computed_on is None
