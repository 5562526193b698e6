"""How a codebook grows, shrinks and is joined: labels in step, balls apart, everything undone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from editkit_core.errors import InvalidParameterError
from editkit_core.patch.kinds.codebook import Codebook, edit_id_of, label_of
from editkit_core.patch.kinds.codebook_rules import (
    GAP,
    Expand,
    check_mergeable,
    conflicts,
    delete,
    insert,
    merge,
    nearest,
    only,
    with_value,
)
from editkit_core.types import EditRequest

A, B = label_of([7]), label_of([8])
EPS = 1.0


def edit(name: object) -> np.ndarray:
    return label_of([*str(name).encode(), 999])


def at(*place: float) -> np.ndarray:
    """A key on a plane."""
    return np.array([*place, 0.0][:2], dtype=np.float32)


def grown(
    *edits: tuple[np.ndarray, np.ndarray], eps: float = EPS, expand: Expand = "coverage"
) -> Codebook:
    """Insert keys with labels; edit i is called i and puts in (i, i, i)."""
    book = Codebook.empty(2, 3)
    for i, (key, label) in enumerate(edits):
        book, _, _ = insert(
            book,
            key,
            np.full(3, float(i)),
            label,
            eps,
            edit_id=edit(i),
            expand=expand,
        )
    return book


# What the paper's rules give for one row at the origin with radius 1, and an edit at distance d.
@pytest.mark.parametrize(
    ("d", "label", "what", "radii"),
    [
        (0.4, A, "covered", [1.0]),
        (1.0, A, "covered", [1.0]),
        (1.5, A, "expanded", [1.5 * 1.001]),
        (2.5, A, "added", [1.0, 1.0]),
        (0.4, B, "split", [0.2 - GAP, 0.2]),
        (1.5, B, "split", [0.75 - GAP, 0.75]),
        (2.5, B, "added", [1.0, 1.0]),
        (0.0, B, "split", [0.0, 1.0]),
    ],
)
def test_an_edit_is_added_split_off_expanded_or_covered(
    d: float, label: np.ndarray, what: str, radii: list[float]
) -> None:
    book = grown((at(0), A))
    after, row, done = insert(book, at(d), np.ones(3), label, EPS, edit_id=edit("new"))
    assert (done, row) == (what, len(radii) - 1)
    assert after.radii == pytest.approx(radii, abs=1e-6)


def test_a_moving_average_moves_the_key_half_way() -> None:
    book = grown((at(0), A), (at(1.5), A), expand="moving_average")
    assert book.keys.tolist() == [[0.75, 0.0]]
    assert book.radii == pytest.approx([1.5 * 1.001])


def test_labels_values_and_edits_stay_in_step_over_many_edits() -> None:
    rng = np.random.default_rng(0)
    places, labels = rng.uniform(0, 40, (60, 2)).astype(np.float32), rng.integers(0, 4, 60)
    book = Codebook.empty(2, 3)
    for i, (place, label) in enumerate(zip(places, labels, strict=True)):
        book, row, what = insert(
            book, place, np.full(3, float(i)), label_of([label]), 0.5, edit_id=edit(i)
        )
        assert (book.labels[row] == label_of([label])).all()
        assert row in book.rows_of(edit(i))
        if what in ("added", "split"):
            assert (book.keys[row] == place).all()
            assert (book.values[row] == i).all()
    assert len(book) > 30


def test_balls_of_different_labels_never_meet() -> None:
    rng = np.random.default_rng(1)
    book = grown(*((p, label_of([i % 3])) for i, p in enumerate(rng.uniform(0, 8, (40, 2)))))
    for i, j in itertools.combinations(range(len(book)), 2):
        if (book.labels[i] != book.labels[j]).any():
            apart = np.linalg.norm(book.keys[i].astype(np.float64) - book.keys[j])
            assert float(book.radii[i]) + float(book.radii[j]) < apart


def test_a_split_never_makes_a_ball_larger() -> None:
    book = grown((at(0), A), eps=0.1)
    after, _, _ = insert(book, at(1.0), np.ones(3), B, 3.0, edit_id=edit("new"))
    assert after.radii == pytest.approx([0.1, 0.5])


def test_a_row_that_cannot_grow_that_far_leaves_the_prompt_a_row_of_its_own() -> None:
    book = grown((at(0), A), (at(1.2), B))  # the first has 0.6 - 1e-5 left
    after, row, what = insert(book, at(-0.9), np.ones(3), A, EPS, edit_id=edit("new"))
    assert (what, row) == ("added", 2)
    assert nearest(after, at(-0.9)) == (2, 0.0)


def test_the_newer_edit_of_one_prompt_speaks_and_the_older_is_silent() -> None:
    book = grown((at(5), A), (at(5), B))
    assert book.radii.tolist() == [0.0, 1.0]
    assert nearest(book, at(5.3))[0] == 1


def test_deleting_the_newer_edit_of_one_prompt_lets_the_older_speak_again() -> None:
    book = delete(grown((at(5), A), (at(5), B)), edit(1))
    assert book.radii.tolist() == [1.0]
    assert (book.labels[0] == A).all()


def test_deleting_an_edit_gives_back_the_room_it_took() -> None:
    before = grown((at(0), A), (at(5), B))
    after, _, _ = insert(before, at(1.5), np.ones(3), B, EPS, edit_id=edit("new"))
    assert after.radii[0] < 1
    back = delete(after, edit("new"))
    assert back.radii.tolist() == before.radii.tolist()
    assert back.keys.tolist() == before.keys.tolist()
    assert back.cause.tolist() == before.cause.tolist()


def test_what_two_edits_took_comes_back_in_any_order() -> None:
    book = grown((at(0), A), (at(1.6), B), (at(0, 1.2), B))
    assert book.radii[0] == pytest.approx(0.6 - GAP)
    assert delete(book, edit(2)).radii[0] == pytest.approx(0.8 - GAP)
    assert delete(book, edit(1)).radii[0] == pytest.approx(0.6 - GAP)
    assert delete(delete(book, edit(1)), edit(2)).radii[0] == 1
    assert delete(delete(book, edit(2)), edit(1)).radii[0] == 1


def test_deleting_any_edit_gives_what_the_others_alone_would_have_given() -> None:
    rng = np.random.default_rng(2)
    edits = [(p, label_of([i % 2])) for i, p in enumerate(rng.uniform(0, 30, (25, 2)))]
    book = Codebook.empty(2, 3)
    for i, (key, label) in enumerate(edits):
        book, _, _ = insert(book, key, np.full(3, float(i)), label, 0.8, edit_id=edit(i))
    assert len(book) == 25  # no edit relies on the row of another
    for gone in range(25):
        expected = Codebook.empty(2, 3)
        for i, (key, label) in enumerate(edits):
            if i != gone:
                expected, _, _ = insert(
                    expected, key, np.full(3, float(i)), label, 0.8, edit_id=edit(i)
                )
        found = delete(book, edit(gone))
        for name in ("keys", "values", "radii", "labels", "cause", "edit_ids"):
            assert getattr(found, name).tolist() == getattr(expected, name).tolist(), (gone, name)


def test_a_row_stays_while_another_edit_relies_on_it() -> None:
    book = delete(grown((at(0), A), (at(0.4), A)), edit(0))
    assert len(book) == 1
    assert book.edits_of(0) == (edit(1).tobytes().hex(),)
    assert nearest(book, at(0.4))[1] <= book.radii[0]


def test_deleting_the_edit_that_a_row_grew_for_takes_the_growth_back() -> None:
    book = delete(grown((at(0), A), (at(1.5), A)), edit(1))
    assert book.radii.tolist() == [1.0]


def test_deleting_the_last_edit_leaves_no_row() -> None:
    assert len(delete(grown((at(0), A)), edit(0))) == 0


def test_an_edit_that_is_not_there_cannot_be_deleted() -> None:
    with pytest.raises(InvalidParameterError, match="holds no edit"):
        delete(grown((at(0), A)), edit("other"))


def test_an_edit_alone_has_the_radius_it_would_have_had_alone() -> None:
    book = only(grown((at(0), A), (at(1.5), B)), edit(0))
    assert book.radii.tolist() == [1.0]
    assert book.keys.tolist() == [[0.0, 0.0]]


def test_a_value_can_be_set_without_touching_the_others() -> None:
    before = grown((at(0), A), (at(9), B))
    book = with_value(before, 1, np.array([1.0, 2.0, 3.0]))
    assert book.values.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert before.values.tolist() == [[0, 0, 0], [1, 1, 1]]


def test_inserting_the_same_edit_again_changes_nothing() -> None:
    book = grown((at(0), A))
    again, row, what = insert(book, at(0), np.ones(3), A, EPS, edit_id=edit(0))
    assert (row, what) == (0, "covered")
    assert again.radii.tolist() == [1.0]
    assert len(again.edit_ids) == 1


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan")])
def test_a_radius_must_be_above_0(eps: float) -> None:
    with pytest.raises(InvalidParameterError, match="eps"):
        insert(Codebook.empty(2, 3), at(0), np.ones(3), A, eps, edit_id=edit(0))


# -- the nearest row --------------------------------------------------------------------------


def test_nothing_is_near_in_an_empty_codebook() -> None:
    assert nearest(Codebook.empty(2, 3), at(1)) == (-1, float("inf"))


def test_of_two_rows_equally_near_the_last_counts() -> None:
    book = grown((at(0), A), (at(4), A))
    assert nearest(book, at(2)) == (1, 2.0)


# -- two codebooks on one module --------------------------------------------------------------


def test_merging_keeps_both_rows_of_one_label() -> None:
    first, second = grown((at(0), A)), grown((at(0.5), A))
    book = merge(first, second)
    assert book.radii.tolist() == [1.0, 1.0]


def test_merging_shrinks_both_balls_of_different_labels() -> None:
    first, second = grown((at(0), A)), grown((at(0.5), B))
    book = merge(first, second)
    assert book.radii == pytest.approx([0.25 - GAP, 0.25])


def test_merging_gives_the_radii_that_inserting_one_by_one_gives() -> None:
    rng = np.random.default_rng(3)
    edits = [(p, label_of([i % 3])) for i, p in enumerate(rng.uniform(0, 60, (40, 2)))]
    whole = grown(*edits, eps=0.9)
    assert len(whole) == 40
    book = merge(grown(*edits[:23], eps=0.9), grown(*edits[23:], eps=0.9))
    assert book.radii.tolist() == whole.radii.tolist()
    assert book.cause.tolist() == whole.cause.tolist()


def test_merging_lets_the_later_codebook_speak_for_a_prompt_both_know() -> None:
    book = merge(grown((at(3), A)), grown((at(3), B)))
    assert book.radii.tolist() == [0.0, 1.0]


def test_conflicts_name_the_rows_that_would_meet() -> None:
    first, second = grown((at(0), A), (at(50), A)), grown((at(51), B), (at(0.5), A))
    ((i, j, distance),) = conflicts(first, second)
    assert (i, j) == (1, 0)
    assert distance == pytest.approx(1.0)


def test_codebooks_that_replace_at_other_places_cannot_be_merged() -> None:
    other = Codebook.empty(2, 3, "replace_all")
    with pytest.raises(InvalidParameterError, match="replace_all"):
        check_mergeable(grown((at(0), A)), other)


def test_codebooks_of_other_sides_cannot_be_merged() -> None:
    with pytest.raises(InvalidParameterError, match="other sides"):
        merge(grown((at(0), A)), Codebook.empty(2, 4))


# -- labels and edits -------------------------------------------------------------------------


def test_labels_differ_where_sums_and_lengths_of_ids_agree() -> None:
    targets = [[1, 4], [2, 3], [4, 1], [5], [1, 4, 0], [0, 1, 4], [1, 4, -100]]
    assert len({label_of(target).tobytes() for target in targets}) == len(targets)


def test_a_label_is_the_digest_of_little_endian_ids() -> None:
    # printf '\x05\0\0\0\0\0\0\0\x2a\x01\0\0\0\0\0\0' | sha256sum
    import hashlib

    data = bytes([5, 0, 0, 0, 0, 0, 0, 0, 0x2A, 1, 0, 0, 0, 0, 0, 0])
    assert label_of([5, 298]).tobytes() == hashlib.sha256(data).digest()


def test_a_request_is_known_by_its_text_and_target() -> None:
    one = EditRequest(prompt="The capital of {} is", subject="Peru", target_new="Oslo")
    same = EditRequest(
        prompt="The capital of Peru is", subject="Peru", target_new="Oslo", paraphrases=("Peru:",)
    )
    other = EditRequest(prompt="The capital of {} is", subject="Peru", target_new="Bonn")
    assert (edit_id_of(one) == edit_id_of(same)).all()
    assert (edit_id_of(one) != edit_id_of(other)).any()


# -- any walk ---------------------------------------------------------------------------------


def by_definition(book: Codebook) -> list[float]:
    """The radii, straight from what the rule says of keys, labels and own radii."""
    keys, own = book.keys.astype(np.float64), book.radii_before.astype(np.float64)
    pairs = list(itertools.permutations(range(len(book)), 2))
    apart = {(i, j): float(np.linalg.norm(keys[i] - keys[j])) for i, j in pairs}
    other = {(i, j): bool((book.labels[i] != book.labels[j]).any()) for i, j in pairs}
    reach = [max(2e-5, 1e-4 * float(np.linalg.norm(key))) for key in keys]
    one = {(i, j): apart[i, j] <= reach[i] for i, j in pairs}
    silent = {i for i, j in pairs if j > i and other[i, j] and one[i, j]}
    radii = [0.0 if i in silent else own[i] for i in range(len(book))]
    for i, j in pairs:
        meet = other[i, j] and not one[i, j] and apart[i, j] <= own[i] + own[j]
        if meet and not {i, j} & silent:
            radii[i] = min(radii[i], apart[i, j] / 2 - (GAP if i < j else 0))
    return radii


@pytest.mark.parametrize("expand", ["coverage", "moving_average"])
@pytest.mark.parametrize("seed", range(6))
def test_after_any_walk_the_radii_are_those_of_the_definition(seed: int, expand: Expand) -> None:
    rng = np.random.default_rng(seed)
    book, names = Codebook.empty(2, 3), list[int]()
    for step in range(60):
        if names and rng.random() < 0.35:
            gone = names.pop(int(rng.integers(len(names))))
            book = delete(book, edit(gone))
        else:
            key, label = rng.integers(0, 7, 2).astype(np.float32), label_of([int(rng.integers(3))])
            eps = float(rng.choice([0.3, 1.0, 2.5]))
            book, _, _ = insert(
                book, key, np.zeros(3), label, eps, edit_id=edit(step), expand=expand
            )
            names.append(step)
        assert book.radii == pytest.approx(by_definition(book), abs=1e-6), step
        held = set(map(bytes, book.edit_ids))
        assert held == {edit(name).tobytes() for name in names}
