"""Codebooks in a stack: snapshots shadow what they replace, order counts, nothing stays behind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import stores
import torch
from torch import Tensor

from editkit_core.errors import (
    ApplyError,
    BaseMismatchError,
    ExportError,
    StackConflictError,
    StaleEntryError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import pair_batch, pair_logits
from editkit_core.patch import Patch, bits
from editkit_core.patch.header_codec import seal
from editkit_core.patch.materialize import materialize
from editkit_core.stack import PatchStack, StackStore
from editkit_core.stack import operations as ops
from editkit_core.stack.conflicts import find_conflicts
from editkit_core.stack.state import entry_of
from editkit_core.testing import tiny_model
from editkit_core.testing.patches import random_codebook, random_patch
from editkit_core.types import EditRequest

FACTS = tuple(
    EditRequest(prompt="The capital of {} is", subject=subject, target_new=target)
    for subject, target in (
        ("Norway", "Lima"),
        ("Peru", "Oslo"),
        ("Chad", "Rome"),
        ("Mali", "Bonn"),
    )
)
OTHER = tuple(attrs.evolve(fact, prompt="{} pays in", target_new="gold") for fact in FACTS)
PROMPTS = [(fact.text, fact.target_new) for fact in (*FACTS, *OTHER)]


@pytest.fixture(scope="module")
def loaded() -> EditableModel:
    return tiny_model("gpt2", n_layers=2, d=16)


@pytest.fixture
def model(loaded: EditableModel) -> Iterator[EditableModel]:
    before = weights(loaded)
    yield loaded
    assert weights(loaded) == before
    assert hooks(loaded) == 0


def weights(model: EditableModel) -> list[str]:
    return [bits.sha256(parameter) for parameter in model.model.parameters()]


def hooks(model: EditableModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


@torch.no_grad()
def said(model: EditableModel) -> Tensor:
    """Return the logits for all prompts, one by one so that padding plays no part."""
    found = [pair_logits(model, pair_batch(model, [pair]))[0] for pair in PROMPTS]
    return torch.cat(found)


def snapshots(model: EditableModel, count: int = 3) -> list[Patch]:
    """Make codebooks of one edit, two edits and so on, each of which replaces the ones before."""
    made: list[Patch] = []
    for number, fact in enumerate(FACTS[:count]):
        former = made[-1] if made else None
        made.append(random_codebook(model, [fact], former=former, seed=number, name=f"s{number}"))
    return made


def rewritten(patch: Patch, **changes: object) -> Patch:
    return attrs.evolve(patch, header=seal(attrs.evolve(patch.header, **changes)))


# -- in memory --------------------------------------------------------------------------------


def test_popping_a_snapshot_shows_the_older_one_again_bit_for_bit(model: EditableModel) -> None:
    with PatchStack(model) as stack:
        outputs = []
        for patch in snapshots(model):
            stack.push(patch)
            outputs.append(said(model))
        assert not torch.equal(outputs[1], outputs[2])
        for expected in (outputs[1], outputs[0]):
            stack.pop()
            assert torch.equal(said(model), expected)


def test_disabling_a_shadowed_patch_changes_nothing(model: EditableModel) -> None:
    with PatchStack(model) as stack:
        for patch in snapshots(model):
            stack.push(patch)
        before = said(model)
        stack.disable("s1")
        stack.remove("s0")
        assert torch.equal(said(model), before)


def test_only_what_counts_is_on_the_model(model: EditableModel) -> None:
    made = snapshots(model)
    with PatchStack(model) as stack:
        for patch in made:
            stack.push(patch)
        assert [active.patch.id for active in model.ledger.active] == [made[-1].id]
        assert stack.digest() == model.ledger.digest()


def test_a_codebook_is_beside_the_weights_and_there_or_not(model: EditableModel) -> None:
    patch = random_codebook(model)
    with PatchStack(model) as stack:
        assert stack.push(patch).state.mode == "overlay"
        with pytest.raises(ApplyError, match="scale"):
            stack.scale(patch.id, 0.5)
        with pytest.raises(ApplyError, match="merge"):
            stack.set_mode(patch.id, "merge")
        assert stack.state.entry(patch.id).scale == 1


def test_a_codebook_that_comes_back_takes_its_place_in_the_order(model: EditableModel) -> None:
    lower = random_codebook(model, FACTS[:1], seed=1, name="lower")
    rival = attrs.evolve(FACTS[0], target_new="Cairo")
    upper = random_codebook(model, [rival], seed=2, name="upper")  # the same key: the later answers
    with PatchStack(model) as stack:
        stack.push(upper)
        alone = said(model)
        stack.clear()
        stack.push(lower)
        stack.push(upper, force=True)
        assert torch.equal(said(model), alone)
        stack.disable("lower")
        stack.enable("lower", force=True)
        assert torch.equal(said(model), alone)
        stack.move("lower", 1)
        assert not torch.equal(said(model), alone)


def test_a_change_that_fails_leaves_the_stack_and_the_model(model: EditableModel) -> None:
    made = snapshots(model)
    with PatchStack(model) as stack:
        stack.push(made[0])
        before, state = said(model), stack.state
        with pytest.raises(ApplyError):
            stack.push(made[1], scale=2.0)
        assert stack.state == state
        assert torch.equal(said(model), before)


def test_a_snapshot_does_not_become_stale_when_what_it_replaces_goes(model: EditableModel) -> None:
    additive = random_patch(model, layers=(0,), name="a")
    with PatchStack(model) as stack:
        stack.push(additive)
        first = random_codebook(model, OTHER[:1], computed_on=stack.digest(), name="first")
        stack.push(first)
        second = random_codebook(
            model, OTHER[1:2], former=first, computed_on=first.header.computed_on, name="second"
        )
        stack.push(second)
        assert stack.state.entry("second").depends_on == (additive.id,)
        stack.remove("first")
        with pytest.raises(StaleEntryError, match="second"):
            stack.remove("a")


@pytest.mark.parametrize("seed", range(8))
def test_random_walks_depend_on_the_state_alone_and_end_at_the_base(
    model: EditableModel, seed: int
) -> None:
    rng = random.Random(seed)
    base = said(model)
    rivals = [attrs.evolve(fact, target_new="Cairo") for fact in FACTS[:2]]
    pool = [
        *snapshots(model),
        random_codebook(model, OTHER[:2], seed=7, eps=2.0),
        random_codebook(model, rivals, seed=8, eps=2.0),
        random_codebook(model, OTHER[2:], layer=0, seed=9, replacement="replace_all"),
        random_patch(model, layers=(0,), seed=1),
        random_patch(model, layers=(0, 1), rank=None, seed=2),
    ]
    stack = PatchStack(model)
    for _ in range(15):
        step(stack, pool, rng)
    found, state = said(model), stack.state
    held = {entry.patch.id: entry.patch for entry in stack.entries}
    stack.clear()
    assert torch.equal(said(model), base)
    with PatchStack.restore(model, state, held):
        assert torch.equal(said(model), found)


def step(stack: PatchStack, pool: list[Patch], rng: random.Random) -> None:
    known = {entry.id for entry in stack.state.entries}
    fresh = [patch for patch in pool if patch.id not in known]
    if fresh and (rng.random() < 0.4 or not known):
        patch = rng.choice(fresh)
        scale = rng.choice((1.0, 0.5)) if patch.weight_entries else 1.0
        stack.push(patch, scale=scale, enabled=rng.random() < 0.8, force=True)
        return
    one = rng.choice(sorted(known))
    change = rng.randrange(5)
    if change == 0:
        stack.disable(one, force=True)
    elif change == 1:
        stack.enable(one, force=True)
    elif change == 2:
        stack.remove(one, force=True)
    elif change == 3:
        stack.move(one, rng.randrange(len(known)), force=True)
    else:
        stack.go_to(rng.choice(["base", one]), force=True)


# -- conflicts --------------------------------------------------------------------------------


def kinds(*patches: Patch) -> list[tuple[str, bool]]:
    found = find_conflicts([(entry_of(patch), patch) for patch in patches])
    return [(conflict.kind, conflict.fatal) for conflict in found]


def test_codebooks_far_from_one_another_do_not_conflict(model: EditableModel) -> None:
    near = random_codebook(model, FACTS[:1], eps=1e-3)
    assert kinds(near, random_codebook(model, FACTS[1:2], eps=1e-3)) == []


def test_balls_that_overlap_with_other_answers_are_told_of_with_both_patches(
    model: EditableModel,
) -> None:
    first = random_codebook(model, FACTS[:1], eps=100.0)
    second = random_codebook(model, FACTS[1:2], eps=100.0)
    (found,) = find_conflicts([(entry_of(patch), patch) for patch in (first, second)])
    assert (found.kind, found.fatal) == ("overlap", False)
    assert (found.lower, found.upper) == (first.id, second.id)
    assert "Both are made smaller" in found.detail


def test_balls_that_overlap_with_one_answer_are_nobodys_matter(model: EditableModel) -> None:
    same = attrs.evolve(FACTS[1], target_new=FACTS[0].target_new)
    first = random_codebook(model, FACTS[:1], eps=100.0)
    assert kinds(first, random_codebook(model, [same], eps=100.0)) == []


def test_two_answers_to_one_prompt_are_refused(model: EditableModel) -> None:
    first = random_codebook(model, FACTS[:1])
    rival = rewritten(
        random_codebook(model, [attrs.evolve(FACTS[0], target_new="Cairo")]), edits=OTHER[:1]
    )
    assert kinds(first, rival) == [("overlap", True)]


def test_two_replacement_modes_on_one_module_are_refused(model: EditableModel) -> None:
    first = random_codebook(model, FACTS[:1])
    second = random_codebook(model, FACTS[1:2], replacement="replace_all")
    assert kinds(first, second) == [("replacement", True)]
    elsewhere = random_codebook(model, FACTS[1:2], layer=0, replacement="replace_all")
    assert kinds(first, elsewhere) == []


def test_a_snapshot_is_in_no_conflict_with_what_it_replaces(model: EditableModel) -> None:
    assert kinds(*snapshots(model)) == []


def test_a_push_of_an_older_snapshot_on_a_newer_one_is_refused(model: EditableModel) -> None:
    older, newer = snapshots(model, 2)
    with PatchStack(model) as stack:
        stack.push(newer)
        with pytest.raises(StackConflictError, match="replaces"):
            stack.push(older)


# -- on disk ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> StackStore:
    return stores.new_store(tmp_path / "stack", stores.saved_base(tmp_path / "base"))


def test_a_codebook_on_disk_changes_no_tensor_and_is_sound(store: StackStore) -> None:
    base = stores.tiny()
    for patch in snapshots(base, 2):
        document = stores.push(store, patch)
    assert document.tensors == {}
    assert [entry.name for entry in document.state.effective] == ["s1"]
    assert StackStore.open(store.folder).state == document.state
    assert store.doctor().ok


def test_a_stack_written_before_patches_could_be_replaced_is_read(store: StackStore) -> None:
    stores.push(store, stores.patches_for(stores.tiny(), 1)[0])
    entry = stores.stated(store.folder)["state"]["entries"][0]  # type: ignore[index]  # JSON
    assert "replaces" not in entry
    assert "extends" not in entry


def test_a_codebook_for_another_base_is_refused(store: StackStore) -> None:
    with pytest.raises(BaseMismatchError, match="c_proj"):
        stores.push(store, random_codebook(stores.tiny(seed=1)))


@pytest.mark.parametrize("change", [{"mode": "merge"}, {"scale": 0.5}])
def test_a_codebook_on_disk_is_neither_merged_nor_scaled(
    store: StackStore, change: dict[str, object]
) -> None:
    entry = attrs.evolve(store.add(random_codebook(stores.tiny())), **change)
    with pytest.raises(ApplyError, match=r"gate\.codebook/1"):
        store.update(lambda state: ops.push(state, entry), action="push")
    assert store.reload().state.entries == ()


def test_a_codebook_cannot_become_a_checkpoint(tmp_path: Path, store: StackStore) -> None:
    patch = random_codebook(stores.tiny())
    with pytest.raises(ExportError, match=r"leaves all others alone.*Editor\.apply"):
        materialize(store.source().folder, [(patch, 1.0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
