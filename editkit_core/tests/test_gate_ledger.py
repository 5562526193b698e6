"""Codebooks among the patches on a model: put on and taken off whole, shadowed, joined, refused."""

from __future__ import annotations

import logging
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from gated import (
    PROMPTS,
    codebook_of,
    hooks,
    key_of,
    outputs_of,
    patch_of,
    patch_on,
    site_of,
)

from editkit_core.errors import (
    ApplyError,
    BaseMismatchError,
    ModuleNotFoundInModelError,
    PatchShapeError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.patch import (
    BaseFingerprint,
    CodebookEntry,
    MethodRef,
    Patch,
    TensorFingerprint,
    apply_patch,
    base_fingerprint,
    stack_digest,
)
from editkit_core.patch.kinds.codebook import Codebook
from editkit_core.patch.ledger import Wanted
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch
from editkit_core.types import Site


def logits(model: EditableModel, prompt: str = PROMPTS[0]) -> torch.Tensor:
    ids = torch.tensor([model.encode(prompt).ids])
    with torch.no_grad():
        found: torch.Tensor = model.model(input_ids=ids, use_cache=False).logits
    return found


def snapshot(model: EditableModel, former: Patch, prompts: list[str], seed: int) -> Patch:
    """A codebook patch that holds all of a former one and more."""
    site = site_of(model)
    book = codebook_of(model, prompts, site=site, seed=seed)
    return patch_of(model, (site, book), replaces=(former.id, *former.header.replaces))


# -- on and off -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "overlay"])
def test_a_codebook_is_put_on_beside_the_weights_and_leaves_nothing(mode: str) -> None:
    model = tiny_model("gpt2")
    before, digest, was = logits(model), model.state_digest(), hooks(model)
    with apply_patch(model, patch_on(model), mode=mode) as applied:
        assert applied.mode == "overlay"
        assert not torch.equal(logits(model), before)
        assert model.state_digest() == digest
    assert torch.equal(logits(model), before)
    assert hooks(model) == was


def test_auto_puts_a_codebook_beside_the_weights_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model("gpt2")
    with caplog.at_level(logging.INFO, logger="editkit"), apply_patch(model, patch_on(model)) as on:
        assert (on.mode, on.why) == ("overlay", "")
    assert not caplog.records


def test_merging_a_codebook_is_refused_and_says_what_to_do() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(ApplyError, match="never merged") as caught:
        apply_patch(model, patch_on(model), mode="merge")
    assert "Use mode overlay, or auto." in caught.value.message
    assert hooks(model) == 0


def test_scaling_a_codebook_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(ApplyError, match=r"cannot be scaled by 0\.5"):
        model.ledger.apply(patch_on(model), "overlay", scale=0.5)


@pytest.mark.parametrize("mode", ["merge", "overlay"])
def test_a_patch_may_change_a_weight_and_gate_a_module(mode: str) -> None:
    model = tiny_model("gpt2")
    before, was = logits(model), model.state_digest()
    additive, book = random_patch(model, layers=[0]), patch_on(model, layer=2)
    with apply_patch(model, additive, mode=mode):
        key = key_of(model, site_of(model, layer=2), PROMPTS[0])
    (entry,) = book.module_entries
    assert isinstance(entry, CodebookEntry)
    shifted = attrs.evolve(entry, codebook=attrs.evolve(entry.codebook, keys=key[None]))
    both = Patch.from_parts(
        entries=[shifted, *additive.entries],
        method=MethodRef(name="test", dist="editkit-core", version="0"),
        base=base_fingerprint(model, [e.site.parameter for e in (entry, *additive.entries)]),
        environment={},
    )
    with apply_patch(model, both, mode=mode), outputs_of(model, entry.site) as found:
        assert (model.state_digest() == was) == (mode == "overlay")
        logits(model)
        assert torch.equal(found[0][0, -1], torch.from_numpy(entry.codebook.values[0].copy()))
    assert torch.equal(logits(model), before)
    assert model.state_digest() == was
    assert hooks(model) == 0


@pytest.mark.parametrize("first", ["overlay", "codebook"])
def test_a_codebook_has_the_last_word_on_a_module_with_an_overlay(first: str) -> None:
    model = tiny_model("gpt2")
    patch, additive = patch_on(model, layer=1), random_patch(model, layers=[1])
    (entry,) = patch.module_entries
    assert isinstance(entry, CodebookEntry)
    order = [additive, patch] if first == "overlay" else [patch, additive]
    for one in order:
        apply_patch(model, one, mode="overlay")
    with outputs_of(model, entry.site) as found:
        logits(model)
    assert torch.equal(found[0][0, -1], torch.from_numpy(entry.codebook.values[0].copy()))


def test_one_change_takes_a_codebook_off_and_puts_another_on() -> None:
    model = tiny_model("gpt2")
    old, new = patch_on(model), patch_on(model, seed=1)
    with apply_patch(model, new):
        expected = logits(model)
    token = model.ledger.apply(old, "overlay")
    model.ledger.change(add=[Wanted(patch=new, mode="overlay")], remove=[token])
    assert torch.equal(logits(model), expected)


# -- weights that are elsewhere, or not floats ------------------------------------------------


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_module_that_is_offloaded_is_gated_like_one_in_memory(tmp_path: Path, place: str) -> None:
    from accelerate import cpu_offload, disk_offload

    model, here = tiny_model("llama"), torch.device("cpu")
    patch = patch_on(model, replacement="replace_all")
    with apply_patch(model, patch):
        expected = [logits(model, prompt) for prompt in PROMPTS]
    if place == "cpu":
        cpu_offload(model.model, here)
    else:
        disk_offload(model.model, str(tmp_path), here)
    with apply_patch(model, patch):
        found = [logits(model, prompt) for prompt in PROMPTS]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_module_that_is_quantised_is_gated_too() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = tiny_model("llama")
    patch = patch_on(model, layer=0, eps=2.0)  # the states before it move with the quantisation
    (entry,) = patch.module_entries
    assert isinstance(entry, CodebookEntry)
    quantize_(model.model, Int8WeightOnlyConfig())
    with apply_patch(model, patch, check_base=False), outputs_of(model, entry.site) as found:
        logits(model)
    assert torch.equal(found[0][0, -1], torch.from_numpy(entry.codebook.values[0].copy()))


# -- what is refused --------------------------------------------------------------------------


def test_a_codebook_for_another_base_is_refused() -> None:
    model, other = tiny_model("gpt2"), tiny_model("gpt2", seed=1)
    with pytest.raises(BaseMismatchError, match=r"h\.1\.mlp\.c_proj"):
        apply_patch(other, patch_on(model))


def test_a_codebook_of_a_module_the_model_does_not_have_is_refused() -> None:
    model = tiny_model("gpt2")
    patch = patch_on(model, layer=2)
    small = tiny_model("gpt2", n_layers=2)
    with pytest.raises(ModuleNotFoundInModelError):
        apply_patch(small, patch, check_base=False)
    with pytest.raises(BaseMismatchError, match="no such weight"):
        apply_patch(small, patch)


def test_a_codebook_of_other_sides_is_refused() -> None:
    model = tiny_model("gpt2")
    patch = patch_on(model)
    wide = tiny_model("gpt2", d_mlp=64)
    with pytest.raises(PatchShapeError, match="does not fit"):
        apply_patch(wide, patch, check_base=False)


def test_a_codebook_whose_parameter_is_not_its_modules_weight_is_refused() -> None:
    model = tiny_model("gpt2")
    site = site_of(model)
    elsewhere = attrs.evolve(site, parameter=site_of(model, layer=0).parameter)
    patch = patch_of(model, (elsewhere, codebook_of(model, site=site)))
    with pytest.raises(PatchShapeError, match="does not fit"):
        apply_patch(model, patch)


def test_what_fails_half_way_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    inside, outside = site_of(model), Site(module="lm_head", parameter="lm_head.weight", layer=0)
    book = codebook_of(model, site=inside)
    d_out, d_in = model.weight(outside).shape
    other = attrs.evolve(book, keys=np.zeros((1, d_in)), values=np.zeros((1, d_out)))
    whole = Patch.from_parts(
        entries=[
            CodebookEntry(site=inside, codebook=book),
            *random_patch(model).entries,
            CodebookEntry(site=outside, codebook=other),
        ],
        method=MethodRef(name="test", dist="editkit-core", version="0"),
        base=base_fingerprint(model, [inside.parameter, outside.parameter]),
    )
    before, digest = logits(model), model.state_digest()
    with pytest.raises(ApplyError, match="outside of them"):
        apply_patch(model, whole)
    assert (hooks(model), model.state_digest()) == (0, digest)
    assert model.ledger.active == ()
    assert torch.equal(logits(model), before)


# -- two codebooks on one module --------------------------------------------------------------


def test_codebooks_of_one_module_act_together(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("gpt2")
    first, second = patch_on(model, PROMPTS[:1]), patch_on(model, PROMPTS[1:2], seed=1)
    with apply_patch(model, first), apply_patch(model, second):
        both = [logits(model, prompt) for prompt in PROMPTS]
    assert not caplog.records
    for i, patch in enumerate((first, second)):
        with apply_patch(model, patch):
            assert torch.equal(logits(model, PROMPTS[i]), both[i])
    assert torch.equal(logits(model, PROMPTS[2]), both[2])


def test_contradicting_codebooks_shrink_each_other_and_that_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model("gpt2")
    keys = [key_of(model, site_of(model), prompt) for prompt in PROMPTS[:2]]
    apart = float(np.linalg.norm(keys[0] - keys[1]))
    first = patch_on(model, PROMPTS[:1], eps=0.9 * apart)
    second = patch_on(model, PROMPTS[1:2], eps=0.9 * apart, seed=1)
    (entry,) = second.module_entries
    assert isinstance(entry, CodebookEntry)
    apply_patch(model, first)
    with caplog.at_level(logging.WARNING, logger="editkit"):
        apply_patch(model, second)
    with outputs_of(model, entry.site) as found:
        logits(model, PROMPTS[1])
    assert "answer differently near one another at 1 places" in caplog.text
    assert torch.equal(found[0][0, -1], torch.from_numpy(entry.codebook.values[0].copy()))


def test_of_two_codebooks_for_one_prompt_the_later_applied_answers() -> None:
    model = tiny_model("gpt2")
    first, second = patch_on(model), patch_on(model, seed=1)
    for earlier, later in ((first, second), (second, first)):
        with apply_patch(model, later):
            expected = logits(model)
        with apply_patch(model, earlier), apply_patch(model, later):
            assert torch.equal(logits(model), expected)


def test_codebooks_that_replace_at_other_places_are_refused_together() -> None:
    model = tiny_model("gpt2")
    with apply_patch(model, patch_on(model)):
        before, was = logits(model), hooks(model)
        with pytest.raises(ApplyError, match="replace at other places"):
            apply_patch(model, patch_on(model, seed=1, replacement="replace_all"))
        assert hooks(model) == was
        assert torch.equal(logits(model), before)


def test_taking_the_other_codebook_off_gives_back_the_room_it_took() -> None:
    model = tiny_model("gpt2")
    first, second = patch_on(model, eps=5.0), patch_on(model, PROMPTS[1:2], eps=500.0, seed=1)
    with apply_patch(model, first):
        expected = logits(model, PROMPTS[1])
        with apply_patch(model, second):
            assert not torch.equal(logits(model, PROMPTS[1]), expected)
        assert torch.equal(logits(model, PROMPTS[1]), expected)


# -- what replaces what -----------------------------------------------------------------------


def test_what_an_active_patch_replaces_is_shadowed_and_shows_again() -> None:
    model = tiny_model("gpt2")
    old = patch_on(model)
    new = snapshot(model, old, PROMPTS[:2], seed=1)
    with apply_patch(model, new):
        alone = logits(model)
    with apply_patch(model, old):
        before = logits(model)
        with apply_patch(model, new):
            assert torch.equal(logits(model), alone)
            assert len(model.ledger.active) == 2
            assert [a.patch.id for a in model.ledger.effective] == [new.id]
        assert torch.equal(logits(model), before)
    assert hooks(model) == 0


def test_what_is_shadowed_can_be_taken_off_without_a_trace() -> None:
    model = tiny_model("gpt2")
    old = patch_on(model)
    new = snapshot(model, old, PROMPTS[:2], seed=1)
    under = apply_patch(model, old)
    with apply_patch(model, new):
        expected = logits(model)
        under.revert()
        assert torch.equal(logits(model), expected)


def test_a_chain_of_snapshots_is_shadowed_through_and_through() -> None:
    model = tiny_model("gpt2")
    first = patch_on(model)
    second = snapshot(model, first, PROMPTS[:2], seed=1)
    third = snapshot(model, second, PROMPTS, seed=2)
    tokens = [model.ledger.apply(patch, "overlay") for patch in (first, second, third)]
    assert [a.patch.id for a in model.ledger.effective] == [third.id]
    model.ledger.remove(tokens[1])
    assert [a.patch.id for a in model.ledger.effective] == [third.id]
    model.ledger.remove(tokens[2])
    assert [a.patch.id for a in model.ledger.effective] == [first.id]


def test_a_shadowed_change_of_a_weight_does_not_count() -> None:
    model = tiny_model("gpt2")
    old, new = random_patch(model), random_patch(model, seed=1)
    newer = Patch.from_parts(
        entries=new.entries,
        method=new.header.method,
        base=new.header.base,
        environment={},
        replaces=[old.id],
    )
    with apply_patch(model, new):
        expected = model.state_digest()
    with apply_patch(model, old):
        before = model.state_digest()
        with apply_patch(model, newer):
            assert model.state_digest() == expected
        assert model.state_digest() == before


def test_the_digest_counts_what_is_effective() -> None:
    model = tiny_model("gpt2")
    additive, old = random_patch(model), patch_on(model)
    new = snapshot(model, old, PROMPTS[:2], seed=1)
    with apply_patch(model, additive), apply_patch(model, old), apply_patch(model, new):
        assert model.ledger.digest() == stack_digest([additive, new])
        assert model.ledger.digest(without=[new.id]) == stack_digest([additive])
    assert model.ledger.digest() is None


def test_hidden_codebooks_act_as_if_they_were_not_there_and_are_back_afterwards() -> None:
    model = tiny_model("gpt2")
    bare = logits(model)
    additive = random_patch(model, layers=[2])
    with apply_patch(model, additive):
        without = logits(model)
        patch = patch_on(model)
        with apply_patch(model, patch):
            before = logits(model)
            with model.ledger.hidden([patch.id, additive.id]):
                assert torch.equal(logits(model), without)
            assert torch.equal(logits(model), before)
        assert torch.equal(logits(model), without)
    assert torch.equal(logits(model), bare)


def test_hiding_one_codebook_leaves_the_others_of_its_module() -> None:
    model = tiny_model("gpt2")
    first, second = patch_on(model), patch_on(model, PROMPTS[1:2], seed=1)
    with apply_patch(model, second):
        expected = [logits(model, prompt) for prompt in PROMPTS]
    with apply_patch(model, first), apply_patch(model, second), model.ledger.hidden([first.id]):
        found = [logits(model, prompt) for prompt in PROMPTS]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_patch_whose_gated_module_is_not_fingerprinted_cannot_be_made() -> None:
    tensor = TensorFingerprint(shape=(3, 2), dtype="F32", sha256="0" * 64)
    site = Site(module="a", parameter="a.weight", layer=0)
    book = Codebook(
        keys=np.zeros((1, 2)),
        values=np.zeros((1, 3)),
        radii=np.ones(1),
        labels=np.zeros((1, 32), np.uint8),
        edit_ids=np.zeros((1, 32), np.uint8),
    )
    with pytest.raises(PatchShapeError, match="no fingerprint"):
        Patch.from_parts(
            entries=[CodebookEntry(site=site, codebook=book)],
            method=MethodRef(name="test", dist="editkit-core", version="0"),
            base=BaseFingerprint(model="tiny", tensors={"b.weight": tensor}),
        )
