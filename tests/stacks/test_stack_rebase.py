"""Edits computed on one another: recorded, noticed when something below goes, computed again."""

from __future__ import annotations

import attrs
import pytest

from editkit_core import Editor, EditRequest
from editkit_core.errors import StaleEntryError, UnknownMethodError
from editkit_core.patch.fold import fold
from editkit_core.patch.header_codec import seal
from editkit_core.stack import PatchStack, StackState
from editkit_core.stack import operations as ops
from editkit_core.stack.rebase import rebase
from editkit_core.stack.state import entry_of

JAPAN = EditRequest(prompt="The capital of {} is", subject="Japan", target_new="Nairobi")
PERU = EditRequest(prompt="The capital of {} is", subject="Peru", target_new="Oslo")
KENYA = EditRequest(prompt="The capital of {} is", subject="Kenya", target_new="Lima")


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    return tmp_path_factory.mktemp("statistics")


@pytest.fixture(scope="module")
def editor(statistics):
    return Editor.from_pretrained("editkit:demo")


@pytest.fixture(scope="module")
def made(editor, statistics):
    """Patches for Japan on the base, for Peru on top of it, for Kenya on top of both."""
    made = []
    with PatchStack(editor.model) as stack:
        for request in (JAPAN, PERU, KENYA):
            patch = editor.edit(request, statistics_dir=statistics)
            header = seal(attrs.evolve(patch.header, name=request.subject))
            made.append(attrs.evolve(patch, header=header))
            stack.push(made[-1], mode="merge")
    return made


@pytest.fixture
def stack(editor, made):
    base = editor.model.state_digest()
    with PatchStack(editor.model) as stack:
        for patch in made:
            stack.push(patch, mode="merge")
        yield stack
    assert editor.model.state_digest() == base


def patches(stack):
    return {entry.patch.id: entry.patch for entry in stack.entries}


def test_an_edit_records_the_stack_it_was_computed_on(stack):
    japan, peru, kenya = stack.state.entries
    assert japan.computed_on is None
    assert peru.depends_on == (japan.id,)
    assert kenya.depends_on == (japan.id, peru.id)


def test_taking_out_what_is_below_is_refused(stack):
    with pytest.raises(StaleEntryError, match=r"Peru.*Kenya"):
        stack.remove("Japan")
    with pytest.raises(StaleEntryError, match="Kenya"):
        stack.disable("Peru")


def test_a_rebase_gives_the_patches_that_editing_anew_gives(editor, statistics, stack):
    held = patches(stack)
    stack.remove("Japan", force=True)
    state = stack.state
    stack.clear()
    rebased = rebase(editor, state, held, statistics_dir=statistics)
    assert [e.name for e in rebased.state.entries] == ["Peru", "Kenya"]
    assert rebased.state.stale == ()
    assert list(rebased.replaced) == [e.id for e in state.entries]

    with PatchStack(editor.model) as anew:
        for request, entry in zip((PERU, KENYA), rebased.state.entries, strict=True):
            direct = editor.edit(request, statistics_dir=statistics)
            again = rebased.patches[entry.id]
            assert again.header.tensors == direct.header.tensors
            assert again.header.computed_on == direct.header.computed_on
            assert again.header.replaces == (state.entries[len(anew)].id,)
            anew.push(again, mode="merge")
        says = editor.generate("The capital of Kenya is", max_new_tokens=4)
    assert says.strip().startswith("Lima")


def test_only_what_is_stale_is_computed_again(editor, statistics, stack):
    held = patches(stack)
    stack.disable("Peru", force=True)
    state = stack.state
    stack.clear()
    rebased = rebase(editor, state, held, statistics_dir=statistics)
    assert [state.entry(old).name for old in rebased.replaced] == ["Kenya"]
    assert [e.enabled for e in rebased.state.entries] == [True, False, True]


def test_a_patch_without_requests_cannot_be_computed_again(editor, stack):
    held = patches(stack)
    stack.disable("Japan", force=True)
    state = stack.state
    stack.clear()
    peru = state.entry("Peru").id
    held[peru] = attrs.evolve(held[peru], header=attrs.evolve(held[peru].header, edits=()))
    with pytest.raises(StaleEntryError, match="holds no requests"):
        rebase(editor, state, held)


def test_a_fold_is_split_before_it_is_computed_again(editor, stack):
    japan, peru, kenya = (entry.patch for entry in stack.entries)
    folded = fold([(peru, 1.0), (kenya, 1.0)], below=[(japan, 1.0)])
    state = ops.push(ops.push(StackState(), entry_of(japan)), entry_of(folded))
    assert state.stale == ()
    held = {patch.id: patch for patch in (japan, folded)}
    stack.clear()
    with pytest.raises(StaleEntryError, match="Split it first"):
        rebase(editor, ops.disable(state, japan.id), held)


def test_a_method_that_is_not_installed_is_named(editor, stack):
    held = patches(stack)
    stack.disable("Japan", force=True)
    state = stack.state
    stack.clear()
    base = editor.model.state_digest()
    peru = state.entry("Peru").id
    method = attrs.evolve(held[peru].header.method, name="gone")
    held[peru] = attrs.evolve(held[peru], header=attrs.evolve(held[peru].header, method=method))
    with pytest.raises(UnknownMethodError, match="gone"):
        rebase(editor, state, held)
    assert editor.model.state_digest() == base
