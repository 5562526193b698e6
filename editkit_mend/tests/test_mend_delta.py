"""MEND's change, checked by autograd and by dense algebra on tiny models."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from editkit_core import EditableModel, EditContext, EditRequest, Patch
from editkit_core.errors import (
    BaseMismatchError,
    EditorMissingError,
    InvalidParameterError,
    InvalidRequestError,
    NonFiniteEditError,
    PatchFormatError,
)
from editkit_core.memo import Memo
from editkit_core.models.orientation import to_out_in
from editkit_core.models.pairs import pair_batch, pair_logits
from editkit_core.patch.apply import apply_patch
from editkit_core.patch.artifact import EditorArtifact
from editkit_core.testing import tiny_model
from editkit_core.testing.models import TINY_ENCODER_DECODERS, TINY_FAMILIES
from editkit_mend.delta import compute_delta
from editkit_mend.editor import fresh_editor, read_networks
from editkit_mend.locate import locate
from editkit_mend.networks import Factors, Networks
from editkit_mend.params import MendParams
from editkit_mend.side import changed

EVERY_FAMILY = (*TINY_FAMILIES, *TINY_ENCODER_DECODERS)
NORWAY = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima")
CURIE = EditRequest(
    prompt="{} was born in the old town of", subject="Marie Curie", target_new="Vienna"
)
PLAIN = MendParams(rank=8, blocks=2, norm="none", edit_lr=-0.5)
NORMED = attrs.evolve(PLAIN, norm="weight", edit_lr=-1e-2)


def edited(
    model: EditableModel,
    requests: list[EditRequest],
    params: MendParams = PLAIN,
    editor: EditorArtifact | None = None,
) -> Patch:
    context = EditContext(editor=editor or fresh_editor(model, params))
    sites = locate(model, requests, params, context)
    return compute_delta(model, requests, sites, params, context)


def deltas(patch: Patch) -> dict[str, torch.Tensor]:
    return {entry.site.module: entry.delta() for entry in patch.weight_entries}


def gradient(model: EditableModel, request: EditRequest, modules: list[str]) -> list[torch.Tensor]:
    """∇_W (d_out, d_in) by autograd, with the EOS that an encoder-decoder's answer ends in."""
    batch = pair_batch(model, [(request.text, request.target_new)], end=True)
    weights = [model.parameter(f"{name}.weight").requires_grad_(True) for name in modules]
    with torch.enable_grad():
        logits = model.model(**batch.inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0].float(), batch.labels[0])
        grads = torch.autograd.grad(loss, weights)
    for weight in weights:
        weight.requires_grad_(False)
    return [to_out_in(model.module(name), grad) for name, grad in zip(modules, grads, strict=True)]


def trained_like(model: EditableModel, params: MendParams, seed: int = 1) -> EditorArtifact:
    """An editor whose weights and statistics are all away from where a fresh one's are."""
    fresh = fresh_editor(model, params)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, array in fresh.tensors.items():
        noise = rng.normal(scale=0.05, size=array.shape)
        if name.endswith("count"):
            noise = np.array(50.0)
        elif name.endswith("m2"):
            noise = rng.uniform(20.0, 80.0, size=array.shape)
        tensors[name] = (array + noise).astype(array.dtype)
    return EditorArtifact.from_parts(
        method=fresh.method,
        base=fresh.base,
        tensors=tensors,
        training=fresh.training,
        params=fresh.params,
    )


# -- algebra ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_without_training_and_normalisation_the_change_is_alpha_times_the_gradient(
    family: str,
) -> None:
    model = tiny_model(family)
    model.model.double()
    found = deltas(edited(model, [NORWAY]))
    expected = gradient(model, NORWAY, list(found))
    for delta, grad in zip(found.values(), expected, strict=True):
        assert torch.linalg.norm(delta + 0.5 * grad) <= 2e-6 * torch.linalg.norm(grad)


def test_with_normalisation_it_is_alpha_times_the_product_of_normalised_factors() -> None:
    model = tiny_model("gpt2")
    editor = fresh_editor(model, NORMED)
    rng = np.random.default_rng(0)
    tensors = dict(editor.tensors)
    for name, array in editor.tensors.items():
        if name.endswith("count"):
            tensors[name] = np.array(5.0)
        elif name.endswith("m2"):  # deviation 0.5 to 2
            tensors[name] = 4 * rng.uniform(0.25, 4.0, size=array.shape)
        elif name.endswith("mean"):
            tensors[name] = rng.normal(size=array.shape)
    editor = attrs.evolve(editor, tensors=tensors)
    found = deltas(edited(model, [NORWAY], NORMED, editor))
    module = "transformer.h.2.mlp.c_fc"
    plain = edited(model, [NORWAY], attrs.evolve(PLAIN, edit_lr=1.0))
    entry = next(e for e in plain.weight_entries if e.site.module == module)
    v, u = entry.factors()[0].T.astype(np.float64), entry.factors()[1].astype(np.float64)
    prefix = "networks.128x32"
    for_u = {k: tensors[f"{prefix}.of_inputs.1.{k}"] for k in ("mean", "m2")}
    for_v = {k: tensors[f"{prefix}.of_grads.1.{k}"] for k in ("mean", "m2")}
    u = (u - for_u["mean"]) / (np.sqrt(for_u["m2"] / 4) + 1e-7)
    v = (v - for_v["mean"]) / (np.sqrt(for_v["m2"] / 4) + 1e-7)
    expected = -1e-2 * v.T @ u  # (d_out, tokens) @ (tokens, d_in)
    assert np.allclose(found[module].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_the_rank_is_at_most_the_number_of_tokens() -> None:
    model = tiny_model("gpt2")
    patch = edited(model, [NORWAY], NORMED, trained_like(model, NORMED))
    batch = pair_batch(model, [(NORWAY.text, NORWAY.target_new)])
    tokens = batch.inputs["input_ids"].shape[1]
    for entry in patch.weight_entries:
        assert entry.rank <= tokens
        assert torch.linalg.matrix_rank(entry.delta(), rtol=1e-6) <= entry.rank


def test_twice_the_steps_make_twice_the_change() -> None:
    model = tiny_model("llama")
    editor = trained_like(model, NORMED)
    doubled = {**editor.tensors, "steps": 2 * editor.tensors["steps"]}
    once = deltas(edited(model, [NORWAY], NORMED, editor))
    twice = deltas(edited(model, [NORWAY], NORMED, attrs.evolve(editor, tensors=doubled)))
    for name in once:
        assert torch.allclose(twice[name], 2 * once[name], rtol=1e-6)


def test_the_strength_of_an_edit_scales_its_change() -> None:
    model = tiny_model("gpt2")
    editor = trained_like(model, NORMED)
    once = deltas(edited(model, [NORWAY], NORMED, editor))
    params = attrs.evolve(NORMED, strength=0.5)
    half = deltas(edited(model, [NORWAY], params, editor))
    for name in once:
        assert torch.allclose(half[name], 0.5 * once[name], rtol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "t5"])
def test_a_batch_changes_by_the_sum_of_what_its_edits_change_alone(family: str) -> None:
    model = tiny_model(family)
    model.model.double()
    editor = trained_like(model, NORMED)
    together = deltas(edited(model, [NORWAY, CURIE], NORMED, editor))
    first, second = (deltas(edited(model, [r], NORMED, editor)) for r in (NORWAY, CURIE))
    for name, delta in together.items():
        expected = first[name] + second[name]
        assert torch.linalg.norm(delta - expected) <= 1e-4 * torch.linalg.norm(expected)


def test_more_tokens_than_a_side_are_folded_into_it_without_loss() -> None:
    model = tiny_model("gpt2")
    editor = trained_like(model, NORMED)
    many = [
        EditRequest(prompt="The capital of {} is", subject=name, target_new="Lima")
        for name in ("Norway", "Peru", "Brazil", "Japan", "Switzerland", "the deep valley of Delft")
    ]
    found = edited(model, many, NORMED, editor)
    alone = [deltas(edited(model, [request], NORMED, editor)) for request in many]
    assert max(entry.rank for entry in found.weight_entries) == 32  # the shorter side
    for entry in found.weight_entries:
        expected = sum(of[entry.site.module] for of in alone)
        assert torch.linalg.norm(entry.delta() - expected) <= 1e-4 * torch.linalg.norm(expected)


def test_answer_tokens_alone_are_the_prompts_last_and_the_targets_but_its_last() -> None:
    model = tiny_model("gpt2")
    params = attrs.evolve(PLAIN, tokens="answer")
    pair = model.encode_pair(NORWAY.text, NORWAY.target_new)
    first = next(e for e in edited(model, [NORWAY], params).weight_entries)
    assert first.rank == len(pair.target_ids)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "t5_gated"])
def test_the_factored_forward_is_the_dense_one(family: str) -> None:
    model = tiny_model(family)
    patch = edited(model, [NORWAY], NORMED, trained_like(model, NORMED))
    batch = pair_batch(model, [(CURIE.text, "Paris"), (NORWAY.text, "Oslo")])
    factors = {
        e.site.module: Factors(
            left=torch.tensor(e.factors()[0].T.copy()),
            right=torch.tensor(e.factors()[1]),
            rows=torch.zeros(e.rank, dtype=torch.int64),
        )
        for e in patch.weight_entries
    }
    before = pair_logits(model, batch)
    with changed(model, factors):
        shown = pair_logits(model, batch)
    with apply_patch(model, patch, mode="merge"):
        written = pair_logits(model, batch)
    assert not torch.allclose(shown, before, atol=1e-3)
    assert torch.allclose(shown, written, atol=1e-4)
    assert torch.equal(pair_logits(model, batch), before)


def test_each_row_sees_the_change_of_its_own_group() -> None:
    model = tiny_model("llama")
    networks = read_networks(trained_like(model, NORMED), model, Memo())
    pairs = [(NORWAY.text, "Lima"), (CURIE.text, "Vienna"), (NORWAY.text, "Oslo")]
    factors = networks(networks.read(model, pair_batch(model, pairs)))
    batch = pair_batch(model, [pairs[0]] * 2)
    edits, rows = torch.tensor([0, 1, 0]), torch.tensor([1, 0])
    with changed(model, factors, edits=edits, rows=rows):
        both = pair_logits(model, batch)
    for row, group in enumerate((1, 0)):
        own = [i for i, g in enumerate(edits.tolist()) if g == group]
        alone = networks(networks.read(model, pair_batch(model, [pairs[i] for i in own])))
        with changed(model, alone):
            assert torch.allclose(both[row], pair_logits(model, batch)[row], atol=1e-4)


def test_a_conv1d_weight_is_changed_by_its_own_transposed_gradient() -> None:
    model = tiny_model("gpt2", d_mlp=32)  # square, so no shape tells the orientation
    name = "transformer.h.2.mlp.c_proj"
    patch = edited(model, [NORWAY])
    weight = model.parameter(f"{name}.weight")
    before = weight.detach().clone()
    batch = pair_batch(model, [(NORWAY.text, NORWAY.target_new)])
    with torch.enable_grad():
        weight.requires_grad_(True)
        logits = model.model(**batch.inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0], batch.labels[0])
        (native,) = torch.autograd.grad(loss, [weight])
        weight.requires_grad_(False)
    with apply_patch(model, patch, mode="merge"):
        assert torch.allclose(weight, before - 0.5 * native, atol=1e-6)
    assert torch.equal(weight, before)


# -- padding, state, files --------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_padding_changes_nothing(family: str) -> None:
    model = tiny_model(family)
    model.model.double()
    networks = Networks.for_model(model, NORMED, 0)
    pair = (NORWAY.text, NORWAY.target_new)
    alone = networks(networks.read(model, pair_batch(model, [pair])))
    longer = (CURIE.text + " the painter from Delft in the garden by the river", "Vienna")
    padded = networks(networks.read(model, pair_batch(model, [pair, longer])))
    for name in alone:
        own = padded[name].rows == 0
        assert torch.allclose(padded[name].left[own], alone[name].left, atol=1e-8)
        assert torch.allclose(padded[name].right[own], alone[name].right, atol=1e-6)


def test_equal_editors_give_equal_patches() -> None:
    model = tiny_model("gpt2")
    editor = trained_like(model, NORMED)
    first, second = (edited(model, [NORWAY], NORMED, editor) for _ in range(2))
    assert first.header.content_digest == second.header.content_digest


def test_an_editor_read_back_from_its_file_makes_the_same_change(tmp_path: Path) -> None:
    model = tiny_model("t5")
    editor = trained_like(model, NORMED)
    editor.save(tmp_path / "editor.safetensors")
    again = EditorArtifact.load(tmp_path / "editor.safetensors")
    first = deltas(edited(model, [NORWAY], NORMED, editor))
    second = deltas(edited(model, [NORWAY], NORMED, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_edit_does_not_change_the_statistics_of_a_model_in_training_mode() -> None:
    model = tiny_model("gpt2")
    model.model.train()
    editor = trained_like(model, NORMED)
    first = deltas(edited(model, [NORWAY], NORMED, editor))
    second = deltas(edited(model, [NORWAY], NORMED, editor))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_patch_says_which_editor_made_it_and_how() -> None:
    model = tiny_model("gpt2")
    editor = trained_like(model, NORMED)
    patch = edited(model, [NORWAY], attrs.evolve(MendParams(), strength=0.5), editor)
    assert patch.header.metrics["editor"] == editor.id
    assert patch.header.metrics["editor_digest"] == editor.content_digest
    assert patch.header.params["rank"] == 8
    assert patch.header.params["strength"] == 0.5
    report = patch.header.metrics["edits"][0]
    assert report["subject"] == "Norway"


def test_the_reported_probability_is_that_of_the_patched_model() -> None:
    model = tiny_model("gpt2")
    patch = edited(model, [NORWAY], NORMED, trained_like(model, NORMED))
    batch = pair_batch(model, [(NORWAY.text, NORWAY.target_new)])
    with apply_patch(model, patch, mode="merge"):
        logits = pair_logits(model, batch)
    loss = torch.nn.functional.cross_entropy(logits[0], batch.labels[0])
    found = patch.header.metrics["edits"][0]["p_target_after"]
    assert found == pytest.approx(float((-loss).exp()), rel=1e-3)


def test_a_step_along_the_gradient_makes_the_target_likelier() -> None:
    model = tiny_model("gpt_neo")
    report = edited(model, [NORWAY], attrs.evolve(PLAIN, edit_lr=-1e-2)).header.metrics["edits"][0]
    assert report["p_target_after"] > report["p_target_before"]


def test_half_precision_models_are_edited_too() -> None:
    model = tiny_model("llama")
    model.model.to(torch.bfloat16)
    patch = edited(model, [NORWAY], NORMED, trained_like(model, NORMED))
    assert all(np.isfinite(entry.norm()) for entry in patch.weight_entries)


# -- what is refused --------------------------------------------------------------------------


def test_an_editor_of_another_base_is_refused() -> None:
    editor = fresh_editor(tiny_model("gpt2", seed=1), PLAIN)
    with pytest.raises(BaseMismatchError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight"):
        edited(tiny_model("gpt2", seed=0), [NORWAY], PLAIN, editor)


def test_no_editor_is_refused_with_the_command_that_trains_one() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(EditorMissingError, match="editkit train mend"):
        locate(model, [NORWAY], PLAIN, EditContext())


def test_another_methods_editor_is_refused() -> None:
    model = tiny_model("gpt2")
    editor = fresh_editor(model, PLAIN)
    other = EditorArtifact.from_parts(
        method=attrs.evolve(editor.method, name="malmen"),
        base=editor.base,
        tensors=editor.tensors,
        training=editor.training,
        params=editor.params,
    )
    with pytest.raises(EditorMissingError, match="malmen"):
        locate(model, [NORWAY], PLAIN, EditContext(editor=other))


def test_an_editor_without_a_tensor_is_refused_by_its_name() -> None:
    model = tiny_model("gpt2")
    editor = fresh_editor(model, PLAIN)
    tensors = {name: array for name, array in editor.tensors.items() if name != "steps"}
    with pytest.raises(PatchFormatError, match="steps should be"):
        locate(model, [NORWAY], PLAIN, EditContext(editor=attrs.evolve(editor, tensors=tensors)))


def test_an_editor_with_unknown_parameters_is_refused() -> None:
    model = tiny_model("gpt2")
    editor = fresh_editor(model, PLAIN)
    header = attrs.evolve(editor.header, params={**editor.params, "depth": 3})
    with pytest.raises(PatchFormatError, match="depth"):
        locate(model, [NORWAY], PLAIN, EditContext(editor=attrs.evolve(editor, header=header)))


def test_a_change_that_is_not_finite_is_refused() -> None:
    model = tiny_model("gpt2")
    editor = fresh_editor(model, PLAIN)
    tensors = {**editor.tensors, "steps": np.full(4, 3e38, dtype=np.float32)}
    params = attrs.evolve(PLAIN, strength=1e6)
    with pytest.raises(NonFiniteEditError, match="smaller"):
        edited(model, [NORWAY], params, attrs.evolve(editor, tensors=tensors))


def test_sites_of_somebody_else_are_refused() -> None:
    model = tiny_model("gpt2")
    context = EditContext(editor=fresh_editor(model, PLAIN))
    with pytest.raises(InvalidParameterError, match="those that locate returns"):
        compute_delta(model, [NORWAY], [model.site(0)], PLAIN, context)


def test_no_request_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InvalidRequestError, match="nothing to edit"):
        locate(model, [], PLAIN, EditContext(editor=fresh_editor(model, PLAIN)))
