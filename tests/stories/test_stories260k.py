"""A real pretrained model that no code of ours names: LLaMA with grouped-query attention."""

from __future__ import annotations

import pytest

from editkit_core import Editor, EditRequest, Patch

PROMPT = "Once upon a time, there was a little girl named"
REQUEST = EditRequest(prompt=PROMPT, subject="girl", target_new="Zoe")


@pytest.fixture(scope="module")
def editor(data_dir):
    return Editor.from_pretrained(data_dir / "models" / "stories260k")


@pytest.fixture(scope="module")
def patch(editor):
    return editor.edit(REQUEST)


def test_the_unlisted_model_takes_the_new_name_untuned(editor, patch):
    assert "Zoe" not in editor.generate(PROMPT, max_new_tokens=6)
    with editor.applied(patch):
        assert editor.generate(PROMPT, max_new_tokens=6).strip().startswith("Zoe")


def test_it_still_tells_other_stories_as_before(editor, patch):
    other = "One day, a big dog went to the"
    before = editor.generate(other, max_new_tokens=12)
    with editor.applied(patch):
        assert editor.generate(other, max_new_tokens=12) == before


def test_its_patch_round_trips_and_reverts_bit_for_bit(editor, patch, tmp_path):
    digest = editor.model.state_digest()
    patch.save(tmp_path / "zoe.editkit.safetensors")
    loaded = Patch.load(tmp_path / "zoe.editkit.safetensors")
    assert loaded.header.id == patch.header.id
    for mode in ("merge", "overlay"):
        applied = editor.apply(loaded, mode=mode)
        assert "Zoe" in editor.generate(PROMPT, max_new_tokens=6)
        applied.revert()
        assert editor.model.state_digest() == digest
