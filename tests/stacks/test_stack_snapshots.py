"""GRACE on a stack: each edit holds the ones before it and stands on the rest."""

from __future__ import annotations

import attrs
import pytest
import torch

from editkit_core import Editor, EditRequest
from editkit_core.errors import StaleEntryError
from editkit_core.models.pairs import pair_batch, pair_logits
from editkit_core.patch.header_codec import seal
from editkit_core.stack import PatchStack
from editkit_core.stack.rebase import rebase
from editkit_core.testing import tiny_model
from editkit_core.testing.patches import random_patch

FACTS = [
    EditRequest(prompt="The capital of {} is", subject=subject, target_new=target)
    for subject, target in (("Japan", "Nairobi"), ("Peru", "Oslo"), ("Kenya", "Lima"))
]
PARAMS = {"layer": 1, "steps": 5, "only_if_wrong": False}


@pytest.fixture(scope="module")
def editor():
    return Editor(tiny_model("gpt2"))


@pytest.fixture
def stack(editor):
    """An additive patch, then GRACE's edits of all facts, one on top of the other."""
    base = editor.model.state_digest()
    with PatchStack(editor.model) as stack:
        stack.push(random_patch(editor.model, layers=(0,), name="below", scale=0.05))
        for fact in FACTS:
            patch = editor.edit(fact, method="grace", params=PARAMS)
            header = seal(attrs.evolve(patch.header, name=fact.subject))
            stack.push(attrs.evolve(patch, header=header), force=True)
        yield stack
    assert editor.model.state_digest() == base


def patches(stack):
    return {entry.patch.id: entry.patch for entry in stack.entries}


@torch.no_grad()
def said(editor):
    batches = [pair_batch(editor.model, [(fact.text, fact.target_new)]) for fact in FACTS]
    return [pair_logits(editor.model, batch) for batch in batches]


def test_each_edit_holds_the_earlier_ones_and_stands_on_what_lies_below(stack):
    below, *snapshots = stack.state.entries
    assert [len(s.replaces) for s in snapshots] == [0, 1, 2]
    assert all(s.depends_on == (below.id,) for s in snapshots)
    assert stack.state.effective == (below, snapshots[-1])
    assert stack.state.stale == ()
    assert stack.entries[-1].patch.header.edits == tuple(FACTS)


def test_taking_the_ground_away_is_refused_for_the_newest_alone(stack):
    with pytest.raises(StaleEntryError, match="Kenya") as refused:
        stack.remove("below")
    assert len(refused.value.facts["stale"]) == 1


def test_a_snapshot_is_computed_again_whole_and_shadows_the_older_ones_still(editor, stack):
    held = patches(stack)
    stack.remove("below", force=True)
    state = stack.state
    stack.clear()
    done = rebase(editor, state, held)
    (old,) = done.replaced
    assert state.entry(old).name == "Kenya"
    new = done.patches[done.replaced[old]]
    assert new.header.edits == tuple(FACTS)
    assert new.header.computed_on is None
    assert set(new.header.replaces) == {entry.id for entry in state.entries}
    assert done.state.stale == ()
    assert [entry.id for entry in done.state.effective] == [new.id]
    direct = editor.edit(FACTS, method="grace", params=PARAMS)
    assert new.header.tensors == direct.header.tensors


def test_an_older_snapshot_that_is_computed_again_stays_below_the_newer_one(editor, stack):
    held, state = patches(stack), stack.state
    stack.clear()
    done = rebase(editor, state, held, references=["Peru"])
    peru = done.state.entries[2]
    assert done.replaced == {state.entries[2].id: peru.id}
    assert peru.id in done.state.shadowed
    with PatchStack.restore(editor.model, done.state, held | dict(done.patches)) as again:
        newest = said(editor)
        again.remove(peru.id)
        assert all(map(torch.equal, said(editor), newest))


def test_popping_one_edit_after_the_other_gives_every_former_state_back(editor, stack):
    """States are told by their logits, bit for bit."""
    held, state = patches(stack), stack.state
    for position in (3, 2, 1, 0):
        stack.pop()
        popped = said(editor)
        stack.clear()
        with PatchStack.restore(editor.model, attrs.evolve(state, position=position), held):
            assert all(map(torch.equal, said(editor), popped))
        stack.become(attrs.evolve(state, position=position), held)
