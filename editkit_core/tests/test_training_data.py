"""Training data: every example by its number, splits without a subject in both parts."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_toys import TARGETS, data, request

from editkit_core.errors import InvalidParameterError, TrainingError
from editkit_core.training import EditExamples, overlap, split_by_subject
from editkit_core.types import EditRequest, Probe


def examples(count: int = 32, **more: object) -> EditExamples:
    return EditExamples(requests=data(count).requests, **more)  # type: ignore[arg-type]


def test_every_epoch_has_each_request_once_in_another_order() -> None:
    drawn = [[e.request.id for e in examples().take(32 * epoch, 32)] for epoch in range(3)]
    assert all(sorted(ids) == sorted(r.id for r in data().requests) for ids in drawn)
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_an_example_depends_on_the_seed_and_its_number_alone() -> None:
    forward, backward = examples(seed=5), examples(seed=5)
    there = [forward.at(number) for number in range(70)]
    back = [backward.at(number) for number in reversed(range(70))][::-1]
    assert there == back
    assert there != [examples(seed=6).at(number) for number in range(70)]
    assert len({example.seed for example in there}) == 70


def test_an_example_has_the_edit_its_equivalents_and_what_is_to_stay() -> None:
    one = attrs.evolve(
        request(0),
        locality={
            "a": (Probe("Where is {}?", ("north", "up")), Probe("no answer")),
            "b": (Probe("Who?", ("me",)),),
        },
    )
    example = EditExamples(requests=(one,)).at(0)
    assert example.edit == ("The Norway knows the", "before")
    assert example.equivalents == (("In the end Norway found a", "before"),)
    assert example.locality == (("Where is Norway?", "north"), ("Who?", "me"))


def test_retargeting_draws_every_other_answer_of_the_relation_but_the_true_one() -> None:
    drawn = examples(seed=1, retarget="relation").take(0, 32 * 40)
    of_one = {e.request.target_new for e in drawn if e.request.id == "r0"}
    assert of_one == set(TARGETS) - {request(0).target_true}
    given_as_is = {e.request.target_new for e in examples().take(0, 320) if e.request.id == "r0"}
    assert given_as_is == {request(0).target_new}


def test_a_request_without_a_relation_keeps_its_target() -> None:
    lonely = attrs.evolve(request(0), relation=None)
    drawn = EditExamples(requests=(lonely, request(1)), retarget="relation").take(0, 20)
    targets = {e.request.target_new for e in drawn if e.request.id == "r0"}
    assert targets == {lonely.target_new}


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(TrainingError, match="no requests"):
        examples(0)


def test_an_unknown_way_to_retarget_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="as_given, relation"):
        examples(retarget="relations")


@given(st.floats(0, 1), st.integers(0, 2**40))
def test_no_subject_is_in_both_parts_of_a_split(share: float, seed: int) -> None:
    whole = data(40)
    one, two = split_by_subject(whole, share, seed)
    assert {r.subject for r in one.requests}.isdisjoint(r.subject for r in two.requests)
    assert sorted(r.id for r in (*one.requests, *two.requests)) == sorted(
        r.id for r in whole.requests
    )
    assert overlap(one, two) == ()


def test_a_split_takes_about_its_share_of_the_subjects() -> None:
    requests = tuple(
        EditRequest(prompt="{} is", subject=f"S{i}", target_new="x") for i in range(2000)
    )
    _, second = split_by_subject(attrs.evolve(data(1), requests=requests), 0.1, 7)
    assert 150 < len(second.requests) < 250


def test_a_subject_goes_the_same_way_in_every_data_set() -> None:
    _, of_all = split_by_subject(data(40), 0.3, 2)
    _, of_some = split_by_subject(data(20), 0.3, 2)
    assert {r.subject for r in of_some.requests} <= {r.subject for r in of_all.requests}


def test_letter_case_and_spaces_do_not_hide_a_subject_that_is_in_both() -> None:
    other = attrs.evolve(
        data(1), requests=(EditRequest(prompt=" peru  is", subject=" peru ", target_new="x"),)
    )
    assert overlap(data(), other) == (" peru ",)
    for seed in range(20):  # it goes where the subject goes
        one, two = split_by_subject(data(), 0.5, seed)
        mine, rest = split_by_subject(other, 0.5, seed)
        assert overlap(one, rest) == overlap(two, mine) == ()


def test_an_impossible_share_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="from 0 to 1"):
        split_by_subject(data(), 1.5, 0)
