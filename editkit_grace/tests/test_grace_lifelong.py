"""Many edits in a row: earlier ones hold, balls stay apart, other prompts are untouched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from editkit_core import Editor
from editkit_core.data import load_dataset
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import pair_batch, pair_logits
from editkit_core.patch.apply import apply_patch
from editkit_core.patch.format import Patch
from editkit_core.patch.kinds.codebook import Codebook, CodebookEntry, edit_id_of
from editkit_core.stack.patch_stack import PatchStack
from editkit_core.testing.models import tiny_model
from editkit_core.types import EditRequest

PEOPLE = ("Ada", "Marie", "Beethoven", "Peru", "Norway", "Japan")
PROMPTS = ("The capital of {} is", "Winter came early to {}", "Nobody knew how old {} was")
TARGETS = ("the", "of", "in")


def few() -> list[EditRequest]:
    """Eighteen requests; neighbours in the order have different targets."""
    pairs = [(prompt, subject) for subject in PEOPLE for prompt in PROMPTS]
    return [
        EditRequest(prompt=prompt, subject=subject, target_new=TARGETS[(i + i // 3) % 3])
        for i, (prompt, subject) in enumerate(pairs)
    ]


def book(patch: Patch) -> Codebook:
    (entry,) = patch.entries
    assert isinstance(entry, CodebookEntry)
    return entry.codebook


def share_right(model: EditableModel, requests: Sequence[EditRequest]) -> float:
    """Share of requests of which every target token is the likeliest."""
    right = 0
    for first in range(0, len(requests), 50):
        some = requests[first : first + 50]
        batch = pair_batch(model, [(request.text, request.target_new) for request in some])
        with torch.no_grad():
            best = pair_logits(model, batch).argmax(dim=-1)
        wrong = (best != batch.labels) & (batch.labels != -100)
        right += int((~wrong.any(dim=1)).sum())
    return right / len(requests)


def meeting(rows: Codebook) -> list[tuple[int, int]]:
    """Pairs of rows of different labels whose balls touch."""
    keys = rows.keys.astype(np.float64)
    found = []
    for i in range(len(rows)):
        distances = np.sqrt(((keys - keys[i]) ** 2).sum(axis=1))
        other = (rows.labels != rows.labels[i]).any(axis=1) & (rows.radii > 0) & (rows.radii[i] > 0)
        touching = other & (distances <= rows.radii.astype(np.float64) + rows.radii[i])
        found += [(i, int(j)) for j in np.flatnonzero(touching)]
    return found


@pytest.mark.parametrize("eps", [0.05, 0.8])
def test_edits_one_after_another_all_hold(eps: float) -> None:
    tiny = tiny_model("gpt2")
    editor, requests = Editor.wrap(tiny.model, tiny.tokenizer), few()
    before = editor.model.state_digest()
    stack = PatchStack(editor.model)
    params = {"layer": 1, "lr": 1.0, "steps": 25, "eps": eps}
    for request in requests:
        stack.push(editor.edit(request, method="grace", params=params))
    last = stack.entries[-1].patch
    rows = book(last)
    assert share_right(editor.model, requests) == 1
    assert meeting(rows) == []
    assert all(rows.rows_of(edit_id_of(request)) for request in last.header.edits)
    assert len(stack.entries) == len(requests)
    stack.clear()
    assert editor.model.state_digest() == before
    assert not any(module._forward_hooks for module in editor.model.model.modules())


@pytest.mark.slow
def test_a_thousand_edits_keep_reliability() -> None:
    editor = Editor.from_pretrained("editkit:demo")
    facts = load_dataset("demo").requests
    requests, others = facts[:1000], facts[1000:]
    plain = [pair_batch(editor.model, [(request.text, "x")]) for request in others[:100]]
    with torch.no_grad():
        before = [pair_logits(editor.model, batch) for batch in plain]
    newest = None
    for first in range(0, 1000, 250):  # snapshots, each on top of the one before
        if newest is None:
            newest = editor.edit(requests[:250], method="grace")
        else:
            with apply_patch(editor.model, newest):
                newest = editor.edit(requests[first : first + 250], method="grace")
    assert newest is not None
    assert len(newest.header.edits) == 1000
    assert meeting(book(newest)) == []
    with apply_patch(editor.model, newest):
        assert share_right(editor.model, requests) >= 0.99
        with torch.no_grad():
            after = [pair_logits(editor.model, batch) for batch in plain]
    untouched = sum(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert untouched >= 99
