"""Conflicts between patches, found without a model."""

from __future__ import annotations

import numpy as np
import pytest

from editkit_core.errors import StackConflictError
from editkit_core.patch import (
    BaseFingerprint,
    DenseEntry,
    Evidence,
    LowRankEntry,
    MethodRef,
    Patch,
    TensorFingerprint,
)
from editkit_core.stack import operations as ops
from editkit_core.stack.conflicts import Conflict, check_conflicts, find_conflicts
from editkit_core.stack.state import EntryState, StackState, entry_of
from editkit_core.types import EditRequest, Site

SITE = Site(module="m", parameter="m.weight", layer=0)
OTHER = Site(module="n", parameter="n.weight", layer=1)
Pairs = list[tuple[EntryState, Patch]]


def request(
    subject: str = "Japan",
    target: str = "Lima",
    relation: str | None = None,
    prompt: str = "The capital of {} is",
) -> EditRequest:
    return EditRequest(prompt=prompt, subject=subject, target_new=target, relation=relation)


def patch(
    *edits: EditRequest,
    u: object = (1.0, 0.0, 0.0),
    v: object = (1.0, 0.0),
    key: object | None = None,
    site: Site = SITE,
    tied: tuple[tuple[str, ...], ...] = (),
    full: bool = False,
    seed: int = 0,
    **header: tuple[str, ...],
) -> Patch:
    left = np.asarray(u, dtype=np.float32)[:, None]
    right = np.asarray(v, dtype=np.float32)[None]
    entry: LowRankEntry | DenseEntry = LowRankEntry(site=site, u=left, v=right)
    if full:
        entry = DenseEntry(site=site, delta=left @ right)
    fingerprint = TensorFingerprint(shape=(3, 2), dtype="F32", sha256="0" * 64)
    return Patch.from_parts(
        entries=[entry],
        method=MethodRef(name="m", dist="d", version="0"),
        base=BaseFingerprint(model="tiny", tied=tied, tensors={site.parameter: fingerprint}),
        edits=edits,
        evidence=None if key is None else Evidence(module=site.module, keys=np.asarray(key)[None]),
        seed=seed,
        environment={},
        **header,
    )


def pairs(*patches: Patch) -> Pairs:
    return [(entry_of(one), one) for one in patches]


def kinds(found: tuple[Conflict, ...]) -> list[str]:
    return [conflict.kind for conflict in found]


CAPITAL = request(relation="capital")
CURRENCY = request(relation="currency", prompt="{} pays in", target="franc")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (request(), request(target="Cairo"), ["contradiction"]),
        (
            request(),
            request(subject=" japan ", target="Cairo", prompt="the  capital of {} is"),
            ["contradiction"],
        ),
        (
            CAPITAL,
            request(relation="capital", target="Cairo", prompt="{}'s capital:"),
            ["contradiction"],
        ),
        (CAPITAL, request(target="Cairo"), ["contradiction"]),
        (request(), request(target="lima"), ["same_edit"]),
        (request(), request(subject="Peru", target="Cairo"), []),
        (request(), request(prompt="The currency of {} is", target="franc"), []),
        (CAPITAL, CURRENCY, []),
    ],
)
def test_the_same_fact_is_known_by_subject_and_relation_or_prompt(
    first: EditRequest, second: EditRequest, expected: list[str]
) -> None:
    found = find_conflicts(pairs(patch(first), patch(second, seed=1)))
    assert kinds(found) == expected
    assert all(conflict.fatal for conflict in found)


def test_a_contradiction_names_both_answers_once() -> None:
    first = patch(request(relation="capital"))
    second = patch(request(relation="capital", target="Cairo"))
    (found,) = find_conflicts(pairs(first, second))
    assert "'Lima'" in found.detail
    assert "'Cairo'" in found.detail
    assert (found.lower, found.upper) == (first.id, second.id)


def test_a_disabled_patch_is_in_nobodys_way() -> None:
    (lower, first), upper = pairs(patch(request()), patch(request(target="Cairo")))
    state = ops.disable(StackState(entries=(lower,), position=1), lower.id)
    assert find_conflicts([(state.entries[0], first), upper]) == ()


def test_declared_conflicts_are_found_from_either_side() -> None:
    first = patch(request())
    second = patch(request(subject="Peru"), conflicts=(first.id,))
    for order in ((first, second), (second, first)):
        assert kinds(find_conflicts(pairs(*order))) == ["declared"]


def test_a_patch_is_in_nobodys_way_below_the_one_that_replaces_it() -> None:
    first = patch(request())
    second = patch(request(), request(subject="Peru"), replaces=(first.id,))
    assert find_conflicts(pairs(first, second)) == ()


def test_a_patch_does_nothing_above_the_one_that_replaces_it() -> None:
    first = patch(request())
    second = patch(request(subject="Peru"), replaces=(first.id,))
    (found,) = find_conflicts(pairs(second, first))
    assert (found.kind, found.fatal) == ("replaced", True)
    assert (found.lower, found.upper) == (second.id, first.id)


def test_a_replaced_patch_does_not_hide_a_contradiction_of_the_newer_one() -> None:
    first = patch(request(subject="Peru"))
    newer = patch(request(), request(subject="Peru"), replaces=(first.id,))
    third = patch(request(target="Cairo"))
    assert kinds(find_conflicts(pairs(first, newer, third))) == ["contradiction"]


def test_a_required_patch_must_be_enabled_below() -> None:
    first = patch(request())
    second = patch(request(subject="Peru"), requires=(first.id,))
    assert kinds(find_conflicts(pairs(first, second))) == []
    assert kinds(find_conflicts(pairs(second, first))) == ["requires"]
    assert kinds(find_conflicts(pairs(second))) == ["requires"]


def test_two_full_matrices_on_one_weight_conflict() -> None:
    first, second = patch(request(), full=True), patch(request(subject="Peru"), full=True)
    assert kinds(find_conflicts(pairs(first, second))) == ["dense"]
    elsewhere = patch(request(subject="Peru"), full=True, site=OTHER)
    assert find_conflicts(pairs(first, elsewhere)) == ()
    assert find_conflicts(pairs(first, patch(request(subject="Peru")))) == ()


def test_two_names_of_one_tensor_conflict() -> None:
    tied = (("m.weight", "n.weight"),)
    first = patch(request(), tied=tied)
    second = patch(request(subject="Peru"), site=OTHER, tied=tied)
    assert kinds(find_conflicts(pairs(first, second))) == ["tied"]
    assert find_conflicts(pairs(first, patch(request(subject="Peru"), tied=tied))) == ()


# -- crosstalk: expected numbers are worked out by hand ---------------------------------------


def test_crosstalk_is_the_ratio_of_the_two_changes_at_the_key() -> None:
    # first moves e1 by 3, its own key is (1, 0); second moves (1, 0) by 0.6 * 2 = 1.2 along e2
    first = patch(request(), u=(3.0, 0.0, 0.0), v=(1.0, 0.0), key=(1.0, 0.0))
    second = patch(request(subject="Peru"), u=(0.0, 2.0, 0.0), v=(0.6, 0.8), key=(0.0, 1.0))
    (found,) = find_conflicts(pairs(first, second), threshold=0.1)
    assert found.value == pytest.approx(0.4, abs=1e-3)  # on second's key first does nothing
    assert not found.fatal
    assert f"{second.id} changes the output for an edit of {first.id} by 40 %" in found.detail
    assert find_conflicts(pairs(first, second), threshold=0.5) == ()


def test_strong_crosstalk_is_fatal_and_scales_count() -> None:
    first = patch(request(), u=(3.0, 0.0, 0.0), v=(1.0, 0.0), key=(1.0, 0.0))
    second = patch(request(subject="Peru"), u=(0.0, 2.0, 0.0), v=(0.6, 0.8), key=(0.0, 1.0))
    scaled = [(entry_of(first), first), (entry_of(second, scale=3.0), second)]
    (found,) = find_conflicts(scaled)
    assert found.value == pytest.approx(1.2, abs=1e-3)
    assert found.fatal


def test_crosstalk_of_a_full_matrix_is_that_of_its_factors() -> None:
    first = patch(request(), u=(3.0, 0.0, 0.0), v=(1.0, 0.0), key=(1.0, 0.0))
    second = patch(request(subject="Peru"), u=(0.0, 2.0, 0.0), v=(0.6, 0.8), full=True)
    (found,) = find_conflicts(pairs(first, second))
    assert found.value == pytest.approx(0.4, abs=1e-3)


def test_other_modules_and_patches_without_evidence_do_not_crosstalk() -> None:
    first = patch(request(), key=(1.0, 0.0))
    elsewhere = patch(request(subject="Peru"), site=OTHER, key=(1.0, 0.0))
    assert find_conflicts(pairs(first, elsewhere), threshold=0) == ()
    silent = pairs(patch(request()), patch(request(subject="Peru")))
    assert find_conflicts(silent, threshold=0) == ()


def test_what_an_edit_was_computed_on_is_not_its_crosstalk() -> None:
    first = patch(request(), u=(1.0, 0.0, 0.0), v=(1.0, 0.0))
    state = ops.push(StackState(), entry_of(first))
    on_top = Patch.from_parts(
        entries=[LowRankEntry(site=SITE, u=np.ones((3, 1)), v=np.ones((1, 2)))],
        method=first.header.method,
        base=first.header.base,
        edits=[request(subject="Peru")],
        evidence=Evidence(module="m", keys=np.array([[1.0, 0.0]])),
        computed_on=state.digest(),
    )
    state = ops.push(state, entry_of(on_top))
    known = {first.id: first, on_top.id: on_top}
    assert find_conflicts([(e, known[e.id]) for e in state.entries]) == ()
    assert kinds(find_conflicts(pairs(first, on_top))) == ["crosstalk"]


# -- refusing ---------------------------------------------------------------------------------


def test_a_fatal_conflict_is_refused_and_accepted_by_force() -> None:
    both = pairs(patch(request()), patch(request(target="Cairo")))
    new = {both[1][0].id}
    with pytest.raises(StackConflictError, match="stack check") as caught:
        check_conflicts(both, new)
    assert caught.value.exit_code == 5
    assert kinds(check_conflicts(both, new, force=True)) == ["contradiction"]


def test_conflicts_among_others_are_not_the_new_ones_fault() -> None:
    three = pairs(patch(request()), patch(request(target="Cairo")), patch(request("Peru", "Rome")))
    assert check_conflicts(three, {three[2][0].id}) == ()
