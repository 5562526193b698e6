"""A stack on a model in memory: exact, reversible, all or nothing."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from editkit_core.errors import (
    ApplyError,
    BaseMismatchError,
    EditkitError,
    InvalidParameterError,
    RevertError,
    StackConflictError,
    StackError,
    StaleEntryError,
    UnknownEntryError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.patch import Patch, apply_patch, bits, fingerprint, ledger
from editkit_core.patch.header_codec import seal
from editkit_core.stack import PatchStack, StackState
from editkit_core.stack import operations as ops
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch
from editkit_core.types import EditRequest

SUBJECTS = ("Norway", "Peru", "Japan", "Brazil", "Vienna", "Delft")


def patch_of(
    model: EditableModel,
    seed: int,
    *,
    layers: tuple[int, ...] = (1,),
    rank: int | None = 1,
    computed_on: str | None = None,
) -> Patch:
    """A random patch that edits a subject of its own and keeps no keys."""
    made = random_patch(model, seed=seed, layers=layers, rank=rank, evidence=False)
    edit = EditRequest(prompt="The capital of {} is", subject=f"S{seed}", target_new="Lima")
    header = attrs.evolve(made.header, edits=(edit,), computed_on=computed_on, name=f"p{seed}")
    return attrs.evolve(made, header=seal(header))


def model_of(dtype: torch.dtype = torch.float32) -> EditableModel:
    model = tiny_model()
    model.model.to(dtype)
    return model


def expected_digest(patches: list[Patch], scales: list[float] | None = None) -> str:
    """The state of a fresh model with the patches' changes added in float64, by hand."""
    model = model_of()
    scales = scales or [1.0] * len(patches)
    totals: dict[str, torch.Tensor] = {}
    for patch, scale in sorted(zip(patches, scales, strict=True), key=lambda item: item[0].id):
        for entry in patch.entries:
            name = entry.site.parameter
            weight = totals.setdefault(name, model.parameter(name).detach().double())
            u, v = (torch.tensor(part).double() for part in entry.factors() or ())
            totals[name] = weight + scale * (u @ v).T  # GPT-2 stores (in, out)
    for name, total in totals.items():
        model.parameter(name).data.copy_(total.float())
    return model.state_digest()


def test_a_stack_gives_the_sum_of_its_enabled_patches() -> None:
    model = model_of()
    patches = [patch_of(model, seed) for seed in range(4)]
    stack = PatchStack(model)
    for patch in patches:
        stack.push(patch)
    assert model.state_digest() == expected_digest(patches)
    stack.disable("p1")
    assert model.state_digest() == expected_digest([p for p in patches if p.header.name != "p1"])
    stack.scale("p2", 0.5)
    assert model.state_digest() == expected_digest(
        [patches[0], patches[2], patches[3]], [1, 0.5, 1]
    )
    stack.remove("#1")
    assert model.state_digest() == expected_digest([patches[2], patches[3]], [0.5, 1])


def test_any_permutation_gives_equal_bits() -> None:
    model = model_of(torch.bfloat16)
    patches = [patch_of(model, seed, rank=rank) for seed, rank in enumerate((1, 3, None, 6))]
    for i, one in enumerate(patches[:-1]):  # two of them full matrices would be a conflict
        assert all(one.id != other.id for other in patches[i + 1 :])
    found = set()
    for order in permutations(patches):
        with PatchStack(model) as stack:
            for patch in order:
                stack.push(patch)
            found.add(model.state_digest())
    assert len(found) == 1


@pytest.mark.parametrize("mode", ["merge", "overlay"])
def test_emptying_a_stack_gives_the_base_back(mode: str) -> None:
    model = model_of()
    base = model.state_digest()
    stack = PatchStack(model)
    for seed in range(3):
        stack.push(patch_of(model, seed), mode=mode)
    for reference in ("p1", "p0", "p2"):
        stack.remove(reference)
    assert model.state_digest() == base
    assert len(stack) == 0


def test_popped_patches_wait_and_come_back() -> None:
    model = model_of()
    base = model.state_digest()
    stack = PatchStack(model)
    for seed in range(3):
        stack.push(patch_of(model, seed))
    full = model.state_digest()
    stack.pop()
    stack.go_to("p0")
    assert [e.name for e in stack.state.applied] == ["p0"]
    stack.go_to("base")
    assert model.state_digest() == base
    stack.go_to("p2")
    assert model.state_digest() == full


def test_a_mode_can_be_changed_later() -> None:
    model = model_of()
    stack = PatchStack(model)
    stack.push(patch_of(model, 0), mode="merge")
    merged, base = model.state_digest(), model_of().state_digest()
    stack.set_mode("p0", "overlay")
    assert model.state_digest() == base
    stack.set_mode("p0", "merge")
    assert model.state_digest() == merged


def test_a_stack_goes_with_the_block_also_after_an_exception() -> None:
    model = model_of()
    base = model.state_digest()

    def failing() -> None:
        with PatchStack(model) as stack:
            stack.push(patch_of(model, 0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert model.state_digest() == base


def test_a_stack_leaves_other_patches_alone() -> None:
    model = model_of()
    other = apply_patch(model, patch_of(model, 9))
    with_other = model.state_digest()
    with PatchStack(model) as stack:
        stack.push(patch_of(model, 0))
    assert model.state_digest() == with_other
    other.revert()
    assert model.state_digest() == model_of().state_digest()


# -- refusals leave everything as it was ------------------------------------------------------


def on_top(model: EditableModel, stack: PatchStack, seed: int) -> Patch:
    return patch_of(model, seed, computed_on=stack.digest())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda s: s.remove("p0"), StaleEntryError),
        (lambda s: s.disable("p0"), StaleEntryError),
        (lambda s: s.scale("p0", 2.0), StaleEntryError),
        (lambda s: s.move("p0", 1), StaleEntryError),
        (lambda s: s.scale("p1", float("nan")), InvalidParameterError),
        (lambda s: s.remove("nobody"), UnknownEntryError),
        (lambda s: s.move("p1", 7), StackError),
        (lambda s: s.push(patch_of(tiny_model(seed=5), 7)), BaseMismatchError),
        (lambda s: s.push(s.entries[0].patch), StackConflictError),
        (lambda s: s.push(patch_of(tiny_model(), 8), mode="glue"), EditkitError),
    ],
)
def test_what_is_refused_changes_nothing(change, error: type[EditkitError]) -> None:
    model = model_of()
    stack = PatchStack(model)
    stack.push(patch_of(model, 0))
    stack.push(on_top(model, stack, 1))
    before, state = model.state_digest(), stack.state
    with pytest.raises(error):
        change(stack)
    assert model.state_digest() == before
    assert stack.state == state


def test_force_accepts_what_becomes_stale_and_it_is_remembered() -> None:
    model = model_of()
    stack = PatchStack(model)
    stack.push(patch_of(model, 0))
    stack.push(on_top(model, stack, 1))
    stack.remove("p0", force=True)
    assert [e.name for e in stack.state.stale] == ["p1"]
    stack.push(patch_of(model, 2))  # an old staleness does not stand in the way of new work


def test_a_contradiction_is_refused_before_anything_is_applied() -> None:
    model = model_of()
    stack = PatchStack(model)
    stack.push(random_patch(model, seed=1, evidence=False))
    before = model.state_digest()
    with pytest.raises(StackConflictError, match="same edit"):
        stack.push(random_patch(model, seed=2, evidence=False))
    assert model.state_digest() == before
    stack.push(random_patch(model, seed=2, evidence=False), force=True)
    assert [c.kind for c in stack.conflicts()] == ["same_edit"]


class Parameter:
    """Something with a tensor that cannot always be given another one."""

    def __init__(self, fails: type[BaseException] | None = None) -> None:
        self.held, self.fails = torch.zeros(1), fails

    @property
    def data(self) -> torch.Tensor:
        return self.held

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error("interrupted")
        self.held = value


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_failure_while_swapping_gives_every_parameter_its_tensor_back(
    error: type[BaseException], fails_at: int
) -> None:
    parameters = [Parameter(error if i == fails_at else None) for i in range(3)]
    before = [parameter.held for parameter in parameters]
    planned: Any = [(parameter, torch.ones(1)) for parameter in parameters]
    with pytest.raises(error):
        ledger._swap_all(planned)
    assert [p.held is tensor for p, tensor in zip(parameters, before, strict=True)] == [True] * 3


def test_what_another_requires_is_not_taken_away() -> None:
    model = model_of()
    stack = PatchStack(model)
    first = patch_of(model, 0)
    second = patch_of(model, 1)
    header = attrs.evolve(second.header, requires=(first.id,))
    stack.push(first)
    stack.push(attrs.evolve(second, header=seal(header)))
    for change in (stack.disable, stack.remove):
        with pytest.raises(StackConflictError, match="requires"):
            change("p0")
    with pytest.raises(StackConflictError, match="requires"):
        stack.move("p0", 1)
    stack.disable("p0", force=True)
    assert [e.name for e in stack.state.active] == ["p1"]


def test_what_was_accepted_once_is_not_asked_again() -> None:
    model = model_of()
    stack = PatchStack(model)
    stack.push(random_patch(model, seed=1, evidence=False, name="a"))
    stack.push(random_patch(model, seed=2, evidence=False, name="b"), force=True)
    stack.scale("b", 0.5)
    stack.disable("b")
    with pytest.raises(StackConflictError, match="same edit"):
        stack.enable("b")


@pytest.mark.parametrize("fails", ["_swap_all", "merged"])
def test_a_failure_half_way_leaves_weights_overlays_and_stack(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    stack = PatchStack(model)
    stack.push(patch_of(model, 0))
    stack.push(patch_of(model, 1, layers=(0,)), mode="overlay")
    stack.go_to("base")
    ids = torch.tensor([[5, 9, 17, 30]])
    before, state, answer = model.state_digest(), stack.state, model.model(input_ids=ids).logits

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, fails, failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            stack.go_to("p1")
    assert model.state_digest() == before
    assert stack.state == state
    assert torch.equal(model.model(input_ids=ids).logits, answer)
    stack.go_to("p1")
    assert not torch.equal(model.model(input_ids=ids).logits, answer)


def test_a_patch_that_overflows_leaves_the_others() -> None:
    model = model_of(torch.float16)
    stack = PatchStack(model)
    stack.push(patch_of(model, 0))
    before = model.state_digest()
    with pytest.raises(ApplyError, match="overflow"):
        stack.push(patch_of(model, 1, layers=(0, 1)), scale=1e9, mode="merge")
    assert model.state_digest() == before
    assert len(stack) == 1


# -- whole states -----------------------------------------------------------------------------


def test_a_state_is_restored_as_one_change() -> None:
    model = model_of()
    patches = {p.id: p for p in (patch_of(model, seed) for seed in range(3))}
    stack = PatchStack(model)
    for patch in patches.values():
        stack.push(patch)
    stack.disable("p1")
    stack.scale("p2", -0.5)
    digest, state = model.state_digest(), stack.state
    stack.clear()
    with PatchStack.restore(model, state, patches) as again:
        assert model.state_digest() == digest
        again.become(ops.enable(again.state, "p1"))
        assert model.state_digest() == expected_digest(list(patches.values()), [1, 1, -0.5])
    assert model.state_digest() == model_of().state_digest()


def test_a_weight_is_hashed_once_for_all_patches_of_a_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of()
    patches = {p.id: p for p in (patch_of(model, seed) for seed in range(5))}
    with PatchStack(model) as stack:
        for patch in patches.values():
            stack.push(patch)
        state = stack.state
    real, hashed = fingerprint.sha256, []

    def counting(tensor: torch.Tensor) -> str:
        hashed.append(tensor.shape)
        return real(tensor)

    monkeypatch.setattr(fingerprint, "sha256", counting)
    with PatchStack.restore(model, state, patches):
        assert len(hashed) == 1


def test_a_state_with_a_patch_that_is_not_at_hand_is_refused() -> None:
    model = model_of()
    stack = PatchStack(model)
    other = PatchStack(tiny_model())
    other.push(patch_of(model, 0))
    with pytest.raises(StackError, match="not at hand"):
        stack.become(other.state)
    assert stack.state == StackState()


# -- the way back through the base's files ----------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_model("llama")
    model.model.save_pretrained(tmp_path, max_shard_size="20KB")
    model.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_way_back_can_be_kept_in_the_files_alone(folder: Path, dtype: str) -> None:
    model = EditableModel.from_pretrained(str(folder), dtype=dtype)
    base = model.state_digest()
    stack = PatchStack(model, pristine="checkpoint")
    stack.push(patch_of(model, 0))
    record = model.ledger._records[model.site(1).parameter]
    assert type(record.pristine).__name__ == "InFiles"  # no copy is kept in memory
    stack.push(patch_of(model, 1))
    stack.remove("p0")
    stack.clear()
    assert model.state_digest() == base


def test_files_that_were_changed_meanwhile_are_not_restored_from(folder: Path) -> None:
    model = EditableModel.from_pretrained(str(folder))
    stack = PatchStack(model, pristine="checkpoint")
    stack.push(patch_of(model, 0))
    before = model.state_digest()
    for file in folder.glob("model-*.safetensors"):
        tensors = {name: tensor + 1 for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RevertError, match="Put the files back"):
        stack.clear()
    assert model.state_digest() == before
    assert len(stack) == 1


def test_a_model_without_files_is_kept_in_memory() -> None:
    model = model_of()
    base = model.state_digest()
    with PatchStack(model, pristine="checkpoint") as stack:
        stack.push(patch_of(model, 0))
        record = model.ledger._records[model.site(1).parameter]
        assert type(record.pristine).__name__ == "Snapshot"
    assert model.state_digest() == base


def test_only_touched_tensors_are_kept() -> None:
    model = model_of()
    stack = PatchStack(model)
    stack.push(patch_of(model, 0, layers=(2,)))
    assert set(model.ledger._records) == {model.site(2).parameter}
    kept = model.ledger.pristine(model.site(2).parameter)
    assert kept is not None
    assert bits.same_bits(kept, model_of().parameter(model.site(2).parameter).detach())
