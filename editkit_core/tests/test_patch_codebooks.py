"""What is done with codebook patches as files: folded, split, thinned out, compared, checked."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from editkit_core.errors import ExportError, InvalidParameterError, StackConflictError
from editkit_core.interop.factors import module_factors
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import pair_batch, pair_logits
from editkit_core.patch import Patch, apply_patch
from editkit_core.patch.canary import largest_deviation, with_canary
from editkit_core.patch.checkpoint_edit import write_patched
from editkit_core.patch.diff import diff
from editkit_core.patch.dropping import edit_named, without
from editkit_core.patch.fold import fold, split
from editkit_core.patch.format import Codebook, CodebookEntry
from editkit_core.patch.io import to_pieces
from editkit_core.patch.lint import lint
from editkit_core.patch.verify import verify
from editkit_core.stack import PatchStack
from editkit_core.testing import tiny_model
from editkit_core.testing.patches import random_codebook, random_patch
from editkit_core.types import EditRequest

FACTS = tuple(
    EditRequest(prompt="The capital of {} is", subject=subject, target_new=target, id=f"r{i}")
    for i, (subject, target) in enumerate((("Norway", "Lima"), ("Peru", "Oslo"), ("Chad", "Rome")))
)
RIVAL = attrs.evolve(FACTS[0], target_new="Cairo")
WIDE = 100.0  # all prompts are in a ball of this radius


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("gpt2", n_layers=2, d=16)


@torch.no_grad()
def said(model: EditableModel, patch: Patch | None = None) -> list[Tensor]:
    """Return the logits for every fact's prompt, with a patch or without."""
    if patch is not None:
        with apply_patch(model, patch):
            return said(model)
    pairs = [(fact.text, fact.target_new) for fact in FACTS]
    return [pair_logits(model, pair_batch(model, [pair])) for pair in pairs]


def routed(model: EditableModel, patch: Patch) -> list[bool]:
    """Say of every fact whether the patch changes what the model says there."""
    pairs = zip(said(model), said(model, patch), strict=True)
    return [not torch.equal(before, after) for before, after in pairs]


def book(patch: Patch) -> Codebook:
    (entry,) = patch.module_entries
    assert isinstance(entry, CodebookEntry)
    return entry.codebook


def file_of(patch: Patch) -> bytes:
    return b"".join(to_pieces(patch))


def same(one: Codebook, two: Codebook) -> bool:
    names = ("keys", "values", "radii", "labels", "cause", "edit_ids", "edit_rows", "reaches")
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in names)


# -- fold and split ---------------------------------------------------------------------------


def test_a_fold_of_codebooks_says_what_they_say_in_a_stack(model: EditableModel) -> None:
    parts = [random_codebook(model, [f], seed=i, eps=WIDE) for i, f in enumerate(FACTS)]
    with PatchStack(model) as stack:
        for part in parts:
            stack.push(part)
        together = said(model)
    for compress in (False, True):
        folded = fold([(part, 1.0) for part in parts], compress=compress)
        assert all(map(torch.equal, said(model, folded), together))
    assert len(folded.entries) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_answers_to_one_prompt_a_fold_gives_the_later_one(
    model: EditableModel, order: tuple[int, int]
) -> None:
    both = [random_codebook(model, [edit], seed=i) for i, edit in enumerate((FACTS[0], RIVAL))]
    first, last = (both[i] for i in order)
    folded = fold([(first, 1.0), (last, 1.0)])
    assert torch.equal(said(model, folded)[0], said(model, last)[0])


def test_the_parts_of_a_fold_of_codebooks_and_weights_come_back(model: EditableModel) -> None:
    parts = [
        random_codebook(model, FACTS[:1], name="book"),
        random_patch(model, layers=(0,)),
        random_codebook(model, FACTS[1:2], layer=0),
    ]
    folded = fold([(part, 1.0) for part in parts])
    assert [entry.level for entry in folded.entries] == ["weight", "module", "module"]
    assert [file_of(part) for part in split(folded)] == [file_of(part) for part in parts]


def test_a_codebook_is_not_folded_with_a_factor_or_what_it_replaces(model: EditableModel) -> None:
    first = random_codebook(model, FACTS[:1])
    second = random_codebook(model, FACTS[1:2], former=first)
    with pytest.raises(ExportError, match=r"gate\.codebook/1 cannot be scaled"):
        fold([(first, 0.5)])
    with pytest.raises(StackConflictError, match=f"replaces {first.id}"):
        fold([(first, 1.0), (second, 1.0)])


def test_codebooks_that_replace_at_other_places_are_not_folded(model: EditableModel) -> None:
    first = random_codebook(model, FACTS[:1])
    second = random_codebook(model, FACTS[1:2], replacement="replace_all")
    with pytest.raises(StackConflictError, match=r"replace_last.*replace_all"):
        fold([(first, 1.0), (second, 1.0)])


def test_a_codebook_splits_into_the_codebooks_of_its_edits_alone(model: EditableModel) -> None:
    whole = random_codebook(model, FACTS, eps=WIDE)
    assert (book(whole).cause >= 0).any()  # they are in one another's way
    parts = split(whole)
    assert [part.header.edits for part in parts] == [(fact,) for fact in FACTS]
    for i, part in enumerate(parts):
        alone = attrs.evolve(book(part), values=book(whole).values[i : i + 1])
        assert same(book(part), alone)
        assert book(part).radii[0] == np.float32(WIDE)
        assert part.header.conflicts == (whole.id,)
        assert part.header.computed_on == whole.header.computed_on


def test_the_parts_of_a_codebook_together_say_what_the_whole_says(model: EditableModel) -> None:
    whole = random_codebook(model, FACTS, eps=WIDE)
    assert all(
        map(torch.equal, said(model, fold([(p, 1.0) for p in split(whole)])), said(model, whole))
    )


def test_an_edit_that_relies_on_the_row_of_another_takes_it_along(model: EditableModel) -> None:
    twin = attrs.evolve(FACTS[1], target_new=FACTS[0].target_new)
    whole = random_codebook(model, [FACTS[0], twin], eps=WIDE)
    assert len(book(whole)) == 1
    first, second = split(whole)
    assert routed(model, second)[1]
    assert book(second).keys.tolist() == book(first).keys.tolist()


def test_a_codebook_of_one_edit_or_of_unlisted_ones_is_not_split(model: EditableModel) -> None:
    with pytest.raises(ExportError, match="it holds 1 edit"):
        split(random_codebook(model, FACTS[:1]))
    whole = random_codebook(model, FACTS)
    rowless = Patch.from_parts(
        entries=whole.entries, method=whole.header.method, base=whole.header.base,
        edits=[*FACTS, RIVAL],
    )  # fmt: skip
    with pytest.raises(ExportError, match="has no row"):
        split(rowless)


# -- taking edits out -------------------------------------------------------------------------


def test_without_an_edit_its_prompt_is_as_in_the_base_and_others_answer_as_before(
    model: EditableModel,
) -> None:
    whole = random_codebook(model, FACTS, eps=1e-3)
    rest = without(whole, [FACTS[1]])
    base, before, after = said(model), said(model, whole), said(model, rest)
    assert torch.equal(after[1], base[1])
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[2], before[2])
    assert rest.header.edits == (FACTS[0], FACTS[2])
    assert rest.header.replaces == (whole.id,)


def test_what_an_edit_took_from_others_is_given_back(model: EditableModel) -> None:
    whole = random_codebook(model, FACTS[:2], eps=WIDE)
    assert book(whole).radii[0] < WIDE
    assert same(book(without(whole, [FACTS[1]])), book(random_codebook(model, FACTS[:1], eps=WIDE)))


def test_nothing_is_left_when_the_last_edit_goes(model: EditableModel) -> None:
    with pytest.raises(ExportError, match="would be left"):
        without(random_codebook(model, FACTS[:1]), [FACTS[0]])


def test_no_edit_is_taken_out_of_weights_or_folds(model: EditableModel) -> None:
    with pytest.raises(ExportError, match=r"weight\.low_rank/1"):
        without(random_patch(model), list(random_patch(model).header.edits))
    folded = fold([(random_codebook(model, FACTS), 1.0)])
    with pytest.raises(ExportError, match="is a fold"):
        without(folded, [FACTS[0]])


def test_an_edit_that_the_patch_does_not_make_is_refused(model: EditableModel) -> None:
    with pytest.raises(InvalidParameterError, match="does not make"):
        without(random_codebook(model, FACTS[:1]), [RIVAL])


@pytest.mark.parametrize("word", ["r1", "Peru", "#2"])
def test_an_edit_is_named_by_id_subject_or_number(model: EditableModel, word: str) -> None:
    assert edit_named(random_codebook(model, FACTS), word) == FACTS[1]


@pytest.mark.parametrize(
    ("word", "said"), [("Perú", "Did you mean 'Peru'"), ("#4", "no edit"), ("Norway", "#1, #2")]
)
def test_an_unknown_or_ambiguous_name_of_an_edit_is_refused(
    model: EditableModel, word: str, said: str
) -> None:
    patch = random_codebook(model, [FACTS[0], RIVAL] if word == "Norway" else FACTS)
    with pytest.raises(InvalidParameterError, match=said):
        edit_named(patch, word)


# -- comparing and looking over ---------------------------------------------------------------


def test_diff_counts_the_rows_of_two_snapshots(model: EditableModel) -> None:
    first = random_codebook(model, FACTS[:2])
    second = random_codebook(model, FACTS[2:], former=first)
    found = diff(first, second)
    (part,) = found.modules
    assert (part.state, part.rows) == ("changed", (2, 0, 1))
    assert (part.first["rows"], part.second["rows"]) == (2, 3)
    assert found.tensors == ()
    assert not found.same_change
    assert found.conflicts == ()


def test_diff_of_the_same_codebook_under_another_name_sees_no_change(model: EditableModel) -> None:
    one, two = (random_codebook(model, FACTS, name=name) for name in "ab")
    assert diff(one, two).same_change
    alone = diff(one, random_patch(model))
    assert [part.state for part in alone.modules] == ["removed"]
    assert [tensor.state for tensor in alone.tensors] == ["added"]


def rules(patch: Patch) -> set[str]:
    return {finding.rule for finding in lint(patch)}


def test_lint_asks_of_a_codebook_no_evidence_and_no_norm(model: EditableModel) -> None:
    said = rules(random_codebook(model, FACTS))
    assert not said & {"evidence", "no_change", "large_change", "unused_rank", "silent_rows"}


def test_lint_names_rows_that_a_later_edit_of_the_prompt_silenced(model: EditableModel) -> None:
    (found,) = [
        f for f in lint(random_codebook(model, [FACTS[0], RIVAL])) if f.rule == "silent_rows"
    ]
    assert "1 of its 2 rows" in found.message


def test_a_canary_holds_on_a_model_with_the_codebook(model: EditableModel) -> None:
    patch = with_canary(model, random_codebook(model, FACTS))
    assert patch.canary is not None
    assert (patch.canary.before != patch.canary.after).all()
    assert largest_deviation(model, patch) == 0


def test_a_canary_asks_an_encoder_decoder_what_a_pair_asks() -> None:
    model = tiny_model("t5")
    patch = with_canary(model, random_patch(model))
    assert patch.canary is not None
    with torch.no_grad():
        batch = pair_batch(model, [(e.text, e.target_new) for e in patch.header.edits])
        chances = pair_logits(model, batch)[0].log_softmax(-1)
    expected = sum(
        float(chances[t, label]) for t, label in enumerate(batch.labels[0]) if label >= 0
    )
    assert patch.canary.before[0] == pytest.approx(expected, abs=1e-4)
    assert largest_deviation(model, patch) == 0


def test_verify_applies_a_codebook_and_takes_it_off_again(
    model: EditableModel, tmp_path: Path
) -> None:
    path = tmp_path / "book.editkit.safetensors"
    with_canary(model, random_codebook(model, FACTS)).save(path)
    report = verify(path, model)
    assert report.ok, report.rows
    (applied,) = [row for row in report.rows if row.check == "apply and revert"]
    assert "beside the weights" in applied.detail


def test_a_codebook_is_no_lora_and_no_checkpoint(model: EditableModel, tmp_path: Path) -> None:
    patch = random_codebook(model)
    with pytest.raises(ExportError, match=r"gate\.codebook/1.*a LoRA cannot hold"):
        module_factors([(patch, 1.0)])
    model.model.save_pretrained(tmp_path / "base")
    with pytest.raises(ExportError, match=r"gate\.codebook/1.*a checkpoint cannot hold"):
        write_patched(tmp_path / "base", patch, tmp_path / "out")
    assert not (tmp_path / "out").exists()
