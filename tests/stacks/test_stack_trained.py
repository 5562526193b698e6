"""A patch of a method that edits with a trained editor is computed again with it."""

from __future__ import annotations

import pytest

from editkit_core import Editor, EditRequest, Patch
from editkit_core.errors import EditorMissingError
from editkit_core.stack import PatchStack
from editkit_core.stack.rebase import rebase
from editkit_core.testing import tiny_model
from editkit_core.testing.patches import random_patch
from editkit_mend.editor import fresh_editor

JAPAN = EditRequest(prompt="The capital of {} is", subject="Japan", target_new="Nairobi")


@pytest.fixture(scope="module")
def editor():
    return Editor(tiny_model("gpt2"))


@pytest.fixture(scope="module")
def trained(editor):
    return fresh_editor(editor.model)


@pytest.fixture
def stale(editor, trained):
    """A state in which MEND's patch has lost what it was computed on, and the patches."""
    with PatchStack(editor.model) as stack:
        stack.push(random_patch(editor.model, layers=(0,), name="below", scale=0.05))
        stack.push(editor.edit(JAPAN, method="mend", editor=trained))
        stack.remove("below", force=True)
        return stack.state, {entry.patch.id: entry.patch for entry in stack.entries}


def test_with_the_editor_it_is_what_editing_anew_gives(editor, trained, stale):
    done = rebase(editor, *stale, trained=trained)
    (new,) = done.patches.values()
    direct = editor.edit(JAPAN, method="mend", editor=trained)
    assert new.header.tensors == direct.header.tensors
    assert done.state.stale == ()


def test_without_the_editor_the_error_asks_for_it(editor, stale):
    with pytest.raises(EditorMissingError, match="--editor"):
        rebase(editor, *stale)


def test_the_command_takes_the_editor(cli, editor, tmp_path):
    base = tmp_path / "base"
    editor.model.model.save_pretrained(base)
    editor.model.tokenizer.save_pretrained(base)
    editor = Editor.from_pretrained(base)
    artifact = fresh_editor(editor.model)
    artifact.save(tmp_path / "mend.editkit.safetensors")
    with PatchStack(editor.model) as stack:
        stack.push(random_patch(editor.model, layers=(0,), name="below"))
        stack.push(editor.edit(JAPAN, method="mend", editor=artifact))
        patches: list[Patch] = [entry.patch for entry in stack.entries]
    for patch in patches:
        patch.save(tmp_path / patch.id)
    assert cli("stack", "init", "--model", base).code == 0
    pushed = cli("stack", "push", *(tmp_path / patch.id for patch in patches), "--force")
    assert pushed.code == 0, pushed.err
    assert cli("stack", "remove", "below", "--force").code == 0
    ran = cli("stack", "rebase", "--editor", tmp_path / "mend.editkit.safetensors", "--json")
    assert ran.code == 0, ran.err
    assert list(ran.json["replaced"]) == [patches[1].id]
