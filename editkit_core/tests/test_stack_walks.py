"""Random walks: whatever is done to a stack, the weights depend on what it holds and on no more."""

from __future__ import annotations

import hashlib
import random

import attrs
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from editkit_core.errors import StaleEntryError
from editkit_core.models.editable import EditableModel
from editkit_core.patch import Patch, bits
from editkit_core.patch.header_codec import seal
from editkit_core.stack import EntryState, PatchStack, StackState
from editkit_core.stack import operations as ops
from editkit_core.stack.state import entry_of
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RANKS: tuple[int | None, ...] = (1, 2, 5, None)  # low_rank by terms and by product, and dense
SCALES = (1.0, 0.5, -1.0, 0.3)


class World:
    """A model, its base's digest and some patches of every kind over its layers."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.model: EditableModel = tiny_model("gpt2", n_layers=2, d=16, d_mlp=32)
        self.model.model.to(dtype)
        self.patches: list[Patch] = [
            random_patch(
                self.model,
                layers=((0,), (1,), (0, 1))[seed % 3],
                rank=RANKS[seed % 4],
                seed=seed,
                evidence=False,
                name=f"p{seed}",
            )
            for seed in range(8)
        ]
        self.names = [self.model.site(layer).parameter for layer in (0, 1)]
        self.base = self.digest()

    def digest(self) -> str:
        touched = "".join(bits.sha256(self.model.parameter(name)) for name in self.names)
        return hashlib.sha256(touched.encode()).hexdigest()


WORLDS: dict[str, World] = {}


def world(dtype: str) -> World:
    if dtype not in WORLDS:
        WORLDS[dtype] = World(DTYPES[dtype])
    return WORLDS[dtype]


class Walk(RuleBasedStateMachine):
    """Pushes, pops, moves, scales, disables and removes, in any order."""

    dtype = "fp32"

    @initialize()
    def begin(self) -> None:
        self.world = world(self.dtype)
        assert self.world.digest() == self.world.base
        self.stack = PatchStack(self.world.model)

    def some(self, data: st.DataObject) -> str:
        return f"#{data.draw(st.integers(1, len(self.stack)))}"

    @rule(
        number=st.integers(0, 7),
        scale=st.sampled_from(SCALES),
        enabled=st.booleans(),
        mode=st.sampled_from(["merge", "merge", "overlay"]),
    )
    def push(self, number: int, scale: float, enabled: bool, mode: str) -> None:
        patch = self.world.patches[number]
        if any(entry.id == patch.id for entry in self.stack.state.entries):
            return
        self.stack.push(patch, scale=scale, enabled=enabled, mode=mode, force=True)

    @precondition(lambda self: self.stack.state.position)
    @rule()
    def pop(self) -> None:
        self.stack.pop()

    @precondition(lambda self: len(self.stack))
    @rule(data=st.data())
    def go_to(self, data: st.DataObject) -> None:
        self.stack.go_to(data.draw(st.sampled_from(["base", self.some(data)])), force=True)

    @precondition(lambda self: len(self.stack))
    @rule(data=st.data(), change=st.sampled_from(["enable", "disable", "remove"]))
    def switch(self, data: st.DataObject, change: str) -> None:
        getattr(self.stack, change)(self.some(data), force=True)

    @precondition(lambda self: len(self.stack))
    @rule(data=st.data(), factor=st.sampled_from(SCALES))
    def scale(self, data: st.DataObject, factor: float) -> None:
        self.stack.scale(self.some(data), factor, force=True)

    @precondition(lambda self: len(self.stack))
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.stack) - 1))
        self.stack.move(self.some(data), place, force=True)

    @precondition(lambda self: len(self.stack))
    @rule(data=st.data(), mode=st.sampled_from(["merge", "overlay"]))
    def set_mode(self, data: st.DataObject, mode: str) -> None:
        self.stack.set_mode(self.some(data), mode)

    @invariant()
    def the_weights_are_those_of_the_merged_patches_alone(self) -> None:
        if not hasattr(self, "stack"):
            return
        merged = [e for e in self.stack.state.active if e.mode == "merge"]
        if not merged:
            assert self.world.digest() == self.world.base

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            return
        found, state = self.world.digest(), self.stack.state
        self.same_from_scratch(found, state)
        self.stack.clear()
        assert self.world.digest() == self.world.base
        assert not any(m._forward_hooks for m in self.world.model.model.modules())

    def same_from_scratch(self, found: str, state: StackState) -> None:
        """Push what is there in another order onto the base: equal bits."""
        self.stack.clear()
        active = list(state.active)
        random.Random(len(active)).shuffle(active)
        known = {patch.id: patch for patch in self.world.patches}
        for entry in active:
            self.stack.push(known[entry.id], scale=entry.scale, mode=entry.mode, force=True)
        assert self.world.digest() == found


def walk(dtype: str, walks: int, steps: int) -> None:
    machine = type(f"Walk_{dtype}", (Walk,), {"dtype": dtype})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # hypothesis has no types for it
        machine,
        settings=settings(max_examples=walks, stateful_step_count=steps, deadline=None),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_walks_end_at_the_base_and_do_not_depend_on_the_way(dtype: str) -> None:
    walk(dtype, walks=300, steps=12)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ten_thousand_random_walks(dtype: str) -> None:
    walk(dtype, walks=3334, steps=12)


# -- staleness, against a model of it that knows the sets themselves --------------------------


@pytest.mark.parametrize("seed", range(30))
def test_walks_of_patches_computed_on_one_another_know_what_is_stale(seed: int) -> None:
    rng = random.Random(seed)
    base = world("fp32")
    state, computed_on = StackState(), dict[str, frozenset[tuple[str, float]]]()
    for number in range(40):
        choice = rng.random()
        if choice < 0.45 or not state.entries:
            patch = _renamed(base.patches[0], number)
            below = frozenset((e.id, e.scale) for e in state.active)
            entry = entry_of(patch)
            on = state.digest() if rng.random() < 0.7 else None
            state = ops.push(state, _computed_on(entry, on))
            computed_on[entry.id] = below if on else frozenset()
        else:
            after = _changed_somehow(state, rng)
            expected = _stale(after, computed_on)
            fresh = expected - _stale(state, computed_on)
            if fresh:
                with pytest.raises(StaleEntryError):
                    ops.check_stale(state, after)
            else:
                ops.check_stale(state, after)
            state = after
        assert {e.id for e in state.stale} == _stale(state, computed_on)


def _changed_somehow(state: StackState, rng: random.Random) -> StackState:
    reference = f"#{rng.randint(1, len(state.entries))}"
    change = rng.randrange(6)
    if change == 0:
        return ops.disable(state, reference)
    if change == 1:
        return ops.enable(state, reference)
    if change == 2:
        return ops.remove(state, reference)
    if change == 3:
        return ops.scale(state, reference, rng.choice(SCALES))
    if change == 4:
        return ops.move(state, reference, rng.randrange(len(state.entries)))
    return ops.go_to(state, rng.randint(0, len(state.entries)))


def _stale(state: StackState, computed_on: dict[str, frozenset[tuple[str, float]]]) -> set[str]:
    found, below = set(), set[tuple[str, float]]()
    for entry in state.active:
        if not computed_on[entry.id] <= below:
            found.add(entry.id)
        below.add((entry.id, entry.scale))
    return found


def _renamed(patch: Patch, number: int) -> Patch:
    return attrs.evolve(patch, header=seal(attrs.evolve(patch.header, seed=number)))


def _computed_on(entry: EntryState, digest: str | None) -> EntryState:
    return attrs.evolve(entry, computed_on=digest)
