"""A stack's states and the changes between them, without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import attrs
import pytest

from editkit_core.errors import (
    InvalidParameterError,
    StackConflictError,
    StackError,
    StaleEntryError,
    UnknownEntryError,
)
from editkit_core.patch.digests import digest_of
from editkit_core.stack import operations as ops
from editkit_core.stack.state import EntryState, StackState


def entry(number: int, *, on: tuple[EntryState, ...] = (), name: str = "") -> EntryState:
    content = hashlib.sha256(str(number).encode()).hexdigest()
    return EntryState(
        id=f"ek-{content[:16]}",
        name=name,
        content_digest=content,
        computed_on=digest_of((e.content_digest, e.scale) for e in on),
    )


A, B, C, D = (entry(i, name=name) for i, name in enumerate("abcd"))


def stack(*entries: EntryState) -> StackState:
    state = StackState()
    for one in entries:
        state = ops.push(state, one)
    return state


def names(state: StackState) -> str:
    return "".join(e.name for e in state.entries)


def test_push_goes_on_top_of_what_is_applied_and_below_what_waits() -> None:
    state = ops.go_to(stack(A, B, C), 1)
    state = ops.push(state, D)
    assert (names(state), state.position) == ("adbc", 2)
    assert state.top is not None
    assert state.top.name == "d"


def test_going_to_a_patch_makes_it_the_top_and_base_unapplies_all() -> None:
    state = stack(A, B, C)
    assert ops.go_to(state, ops.position_of(state, "b")).applied == state.entries[:2]
    assert ops.go_to(state, ops.position_of(state, "base")).active == ()


def test_there_is_nothing_to_pop_below_the_base_nor_to_apply_above_the_top() -> None:
    with pytest.raises(StackError, match="none can be popped"):
        ops.go_to(StackState(), -1)
    with pytest.raises(StackError, match="are applied already"):
        ops.go_to(stack(A), 2)


def test_a_patch_is_found_by_id_beginning_name_or_number() -> None:
    state = stack(A, B, C)
    for reference in (B.id, B.id[:8], B.id[3:9], "b", "#2"):
        assert state.index(reference) == 1


@pytest.mark.parametrize("reference", ["", "zz", "#0", "#4", "#x", "ek-ffff"])
def test_an_unknown_reference_says_what_there_is(reference: str) -> None:
    with pytest.raises(UnknownEntryError, match=r"it holds ek-[0-9a-f]{16} \(a\)"):
        stack(A, B, C).index(reference)


def test_an_ambiguous_beginning_names_the_candidates() -> None:
    with pytest.raises(UnknownEntryError, match="may be any of") as caught:
        stack(A, B).index("ek-")
    assert A.id in str(caught.value)
    assert B.id in str(caught.value)


def test_a_close_name_is_suggested() -> None:
    with pytest.raises(UnknownEntryError, match="Did you mean 'japan'"):
        stack(attrs.evolve(A, name="japan")).index("jpan")


def test_the_same_patch_cannot_be_pushed_twice() -> None:
    with pytest.raises(StackConflictError, match="in the stack already"):
        ops.push(stack(A), A)


# -- patches that replace others ----------------------------------------------------------------


def replacing(one: EntryState, *others: EntryState, extends: bool = False) -> EntryState:
    return attrs.evolve(one, replaces=tuple(e.id for e in others), extends=extends)


def effective(state: StackState) -> str:
    return "".join(e.name for e in state.effective)


def test_a_replaced_patch_stays_and_does_not_count() -> None:
    state = ops.push(stack(A, B, C), replacing(D, A, C))
    assert (names(state), effective(state)) == ("abcd", "bd")
    assert state.shadowed == {A.id, C.id}


@pytest.mark.parametrize("change", [ops.disable, ops.remove, lambda s, _: ops.go_to(s, 3)])
def test_what_a_patch_replaces_shows_again_when_it_goes(
    change: Callable[[StackState, str], StackState],
) -> None:
    state = ops.push(stack(A, B, C), replacing(D, A, C))
    assert effective(change(state, "d")) == "abc"


def test_a_chain_of_snapshots_counts_as_its_last_member_whichever_others_are_enabled() -> None:
    chain = stack(A, replacing(B, A), replacing(C, B), replacing(D, C))
    assert effective(chain) == "d"
    assert effective(ops.disable(chain, "c")) == "d"
    assert effective(ops.disable(ops.disable(chain, "d"), "b")) == "c"


def test_the_digest_is_that_of_what_counts() -> None:
    snapshot = replacing(C, A)
    expected = digest_of([(B.content_digest, 1.0), (C.content_digest, 1.0)])
    assert stack(A, B, snapshot).digest() == expected


def test_a_snapshot_stands_on_what_counts_without_what_it_replaces() -> None:
    snapshot = replacing(entry(9, on=(B,), name="s"), A)
    state = stack(A, B, snapshot)
    assert state.entry("s").depends_on == (B.id,)
    assert state.stale == ()
    assert [e.name for e in ops.disable(state, "b").stale] == ["s"]


def test_what_stands_on_a_patch_stands_on_one_that_extends_it_too() -> None:
    upper = entry(8, on=(A,), name="u")
    assert stack(A, upper, replacing(B, A, extends=True)).stale == ()
    assert [e.name for e in stack(A, upper, replacing(B, A)).stale] == ["u"]


def test_a_shadowed_patch_is_not_stale_before_it_shows_again() -> None:
    lower = entry(8, on=(A,), name="l")
    state = ops.disable(stack(A, lower, replacing(B, lower)), "a")
    assert state.stale == ()
    with pytest.raises(StaleEntryError, match="l"):
        ops.check_stale(state, ops.go_to(state, 2))


def test_what_replaced_an_old_patch_replaces_the_one_in_its_place() -> None:
    state = ops.replace(stack(A, replacing(B, A)), "a", C)
    assert (names(state), effective(state)) == ("cb", "b")


@pytest.mark.parametrize(("place", "order"), [(0, "bacd"), (2, "acbd"), (3, "acdb")])
def test_moving_keeps_the_number_of_applied_patches(place: int, order: str) -> None:
    state = ops.go_to(stack(A, B, C, D), 2)
    moved = ops.move(state, "b", place)
    assert (names(moved), moved.position) == (order, 2)


def test_moving_to_no_place_is_refused() -> None:
    with pytest.raises(StackError, match="no place 4 in a stack of 3"):
        ops.move(stack(A, B, C), "a", 3)


def test_removing_a_waiting_patch_leaves_the_position() -> None:
    state = ops.go_to(stack(A, B, C), 1)
    assert ops.remove(state, "c").position == 1
    assert ops.remove(state, "a").position == 0


def test_the_digest_is_of_the_active_patches_and_their_scales_in_any_order() -> None:
    state = stack(A, B, C)
    assert state.digest() == stack(C, B, A).digest()
    assert ops.disable(state, "b").digest() == stack(A, C).digest()
    assert ops.scale(state, "b", 0.5).digest() != state.digest()
    assert ops.scale(state, "b", 1).digest() == state.digest()
    assert ops.go_to(state, 0).digest() is None


@pytest.mark.parametrize("factor", [0, 0.0, float("nan"), float("inf"), True, "1"])
def test_a_scale_that_means_nothing_is_refused(factor: float) -> None:
    with pytest.raises(InvalidParameterError, match="must be a number other than 0"):
        ops.scale(stack(A), "a", factor)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="no mode 'glue'"):
        ops.set_mode(stack(A), "a", "glue")  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("position", [-1, 2, True, 1.0])
def test_a_position_outside_the_stack_is_refused(position: int) -> None:
    with pytest.raises(InvalidParameterError, match="position is"):
        StackState(entries=(A,), position=position)


def test_a_state_that_lists_a_patch_twice_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="twice"):
        StackState(entries=(A, A))


# -- staleness --------------------------------------------------------------------------------


ON_AB = entry(9, on=(A, B), name="x")


def test_a_patch_knows_the_patches_it_was_computed_on() -> None:
    state = stack(A, B, ON_AB)
    assert set(state.entry("x").depends_on) == {A.id, B.id}
    assert state.stale == ()


def test_others_may_be_between_and_below() -> None:
    state = stack(C, A, D, B, ON_AB)
    assert set(state.entry("x").depends_on) == {A.id, B.id}
    assert state.stale == ()


def test_a_patch_computed_on_the_base_is_never_stale() -> None:
    state = stack(A, B, C)
    for change in (ops.remove(state, "a"), ops.disable(state, "b"), ops.scale(state, "a", 2)):
        assert change.stale == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: ops.remove(s, "a"),
        lambda s: ops.disable(s, "b"),
        lambda s: ops.scale(s, "a", 0.5),
        lambda s: ops.move(s, "a", 2),
    ],
)
def test_what_changes_below_a_dependent_patch_is_refused_unless_forced(change) -> None:
    before = stack(A, B, ON_AB)
    after = change(before)
    with pytest.raises(StaleEntryError, match="--rebase") as caught:
        ops.check_stale(before, after)
    assert ON_AB.id in str(caught.value)
    ops.check_stale(before, after, force=True)
    ops.check_stale(after, after)  # what was stale before is not told again


def test_what_is_put_back_is_not_stale_any_more() -> None:
    state = ops.disable(stack(A, B, ON_AB), "a")
    assert [e.name for e in state.stale] == ["x"]
    assert ops.enable(state, "a").stale == ()


def test_a_patch_computed_on_a_stack_that_is_not_there_is_stale() -> None:
    before = stack(A)
    after = ops.push(before, ON_AB)
    assert after.entry("x").depends_on == ()
    with pytest.raises(StaleEntryError):
        ops.check_stale(before, after)


def test_a_scaled_dependency_counts_with_its_scale() -> None:
    half = attrs.evolve(A, scale=0.5)
    on_half = entry(10, on=(half,), name="h")
    assert stack(half, on_half).stale == ()
    assert [e.name for e in stack(A, on_half).stale] == ["h"]


def test_replacing_a_patch_makes_what_stood_on_it_stale_and_keeps_the_order() -> None:
    state = ops.replace(stack(A, B, ON_AB), "a", D)
    assert names(state) == "dbx"
    assert [e.name for e in state.stale] == ["x"]


def test_dependencies_are_found_in_a_large_stack_from_its_bottom_or_its_top() -> None:
    many = tuple(entry(100 + i, name=f"n{i}") for i in range(30))
    on_lower = entry(200, on=many[:7], name="lower")
    on_upper = entry(201, on=many[-3:], name="upper")
    assert len(stack(*many, on_lower).entry("lower").depends_on) == 7
    assert len(stack(*many, on_upper).entry("upper").depends_on) == 3
