"""Patches on a model in memory: what they do to the weights, and that nothing stays behind."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from editkit_core.errors import (
    ApplyError,
    BaseMismatchError,
    PatchShapeError,
    RevertError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.patch import apply_patch, bits, stack_digest
from editkit_core.patch.rounding import round_once
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MODES = ["merge", "overlay"]
FAMILIES = ["gpt2", "llama"]


def model_of(family: str = "gpt2", dtype: torch.dtype = torch.float32) -> EditableModel:
    model = tiny_model(family)
    model.model.to(dtype)
    return model


def logits(model: EditableModel) -> torch.Tensor:
    ids = torch.tensor([[5, 9, 17, 30]])
    with torch.no_grad():
        found: torch.Tensor = model.model(input_ids=ids, use_cache=False).logits.float()
    return found


def hooks(model: EditableModel) -> int:
    return sum(len(module._forward_hooks) for module in model.model.modules())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", [1, 3, None])
def test_merge_is_the_float64_sum_cast_once(
    family: str, dtype: torch.dtype, rank: int | None
) -> None:
    model = model_of(family, dtype)
    patch = random_patch(model, rank=rank)
    site = patch.entries[0].site
    arrays = {k: torch.tensor(a).double() for k, a in patch.entries[0].tensors().items()}
    delta = arrays["delta"] if rank is None else arrays["u"] @ arrays["v"]
    expected = round_once(model.weight(site).double() + delta, dtype)
    with apply_patch(model, patch):
        assert bits.same_bits(model.weight(site).contiguous(), expected.contiguous())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_revert_restores_the_model_bit_exactly(family: str, mode: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    before, answers = model.state_digest(), logits(model)
    applied = apply_patch(model, random_patch(model, layers=(0, 2), rank=2), mode=mode)
    assert not torch.equal(logits(model), answers)
    applied.revert()
    assert model.state_digest() == before
    assert torch.equal(logits(model), answers)
    assert hooks(model) == 0


@pytest.mark.parametrize("mode", MODES)
def test_reverting_twice_does_nothing_more(mode: str) -> None:
    model = model_of()
    before = model.state_digest()
    applied = apply_patch(model, random_patch(model), mode=mode)
    assert applied.active
    applied.revert()
    applied.revert()
    assert not applied.active
    assert model.state_digest() == before


def test_an_overlay_never_touches_the_weights() -> None:
    model = model_of()
    before = model.state_digest()
    with apply_patch(model, random_patch(model), mode="overlay"):
        logits(model)
        assert model.state_digest() == before


@pytest.mark.parametrize(
    "family", ["gpt2", "gpt_neo", "gptj", "llama", "mistral", "qwen2", "qwen3"]
)
@pytest.mark.parametrize("rank", [2, None])
def test_overlay_and_merge_give_equal_logits(family: str, rank: int | None) -> None:
    model = model_of(family)
    patch = random_patch(model, rank=rank)
    with apply_patch(model, patch, mode="merge"):
        merged = logits(model)
    with apply_patch(model, patch, mode="overlay"):
        torch.testing.assert_close(logits(model), merged, atol=2e-4, rtol=1e-4)


def test_a_square_weight_is_oriented_by_its_module_not_its_shape() -> None:
    model = tiny_model("gpt2", d=32, d_mlp=32)
    patch = random_patch(model)
    site = patch.entries[0].site
    parameter = model.parameter(site.parameter).clone()
    with apply_patch(model, patch):
        change = model.parameter(site.parameter) - parameter
    torch.testing.assert_close(change, patch.entries[0].delta().T.float(), atol=1e-5, rtol=1e-4)
    assert patch.header.base.tensors[site.parameter].layout == "in_out"


def test_entries_of_one_weight_add_up() -> None:
    model = model_of()
    patch = random_patch(model, layers=(1, 1), rank=2)
    site = patch.entries[0].site
    expected = (
        model.weight(site).double() + patch.entries[0].delta() + patch.entries[1].delta()
    ).float()
    with apply_patch(model, patch):
        assert torch.equal(model.weight(site), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_several_patches_removed_in_any_order_end_at_the_base(
    dtype: torch.dtype, seed: int
) -> None:
    model, chance = model_of(dtype=dtype), random.Random(seed)
    before = model.state_digest()
    patches = [
        random_patch(model, seed=i, layers=chance.choice([(0,), (1,), (0, 1), (1, 1)]),
                     rank=chance.choice([1, 3, None]))
        for i in range(5)
    ]  # fmt: skip
    applied = [apply_patch(model, p, mode=chance.choice(MODES)) for p in patches]
    chance.shuffle(applied)
    for one in applied:
        one.revert()
    assert model.state_digest() == before
    assert hooks(model) == 0
    assert model.ledger.pristine(patches[0].entries[0].site.parameter) is None


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_applying_does_not_change_a_bit(mode: str) -> None:
    model = model_of(dtype=torch.bfloat16)
    patches = [random_patch(model, seed=i, rank=3) for i in range(4)]
    seen = set()
    for seed in range(4):
        random.Random(seed).shuffle(patches)
        applied = [apply_patch(model, patch, mode=mode) for patch in patches]
        seen.add((model.state_digest(), tuple(logits(model).flatten().tolist())))
        for one in applied:
            one.revert()
    assert len(seen) == 1


def test_taking_one_out_of_the_middle_leaves_what_the_others_alone_would_give() -> None:
    model = model_of()
    patches = [random_patch(model, seed=i) for i in range(3)]
    with apply_patch(model, patches[0]), apply_patch(model, patches[2]):
        expected = model.state_digest()
    applied = [apply_patch(model, patch) for patch in patches]
    applied[1].revert()
    assert model.state_digest() == expected


def test_the_ledger_knows_the_stack() -> None:
    model = model_of()
    patches = [random_patch(model, seed=i) for i in range(2)]
    assert model.ledger.digest() is None
    with apply_patch(model, patches[0]), apply_patch(model, patches[1], mode="overlay"):
        assert model.ledger.digest() == stack_digest(patches)
        assert [active.patch.id for active in model.ledger.active] == [p.id for p in patches]
    assert model.ledger.digest() is None


def test_an_exception_in_the_block_takes_the_patch_off() -> None:
    model = model_of()
    before = model.state_digest()
    with pytest.raises(KeyboardInterrupt), apply_patch(model, random_patch(model)):
        raise KeyboardInterrupt
    assert model.state_digest() == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_half_way_through_writing_leaves_the_former_state(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    model = model_of()
    first, second = random_patch(model, seed=1), random_patch(model, seed=2, layers=(0, 1, 2))
    base = model.state_digest()
    applied = apply_patch(model, first)
    before = model.state_digest()
    real, calls = torch.Tensor.copy_, []

    def failing(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise error("out of memory")
        return real(self, *args, **kwargs)  # type: ignore[arg-type]  # passed through

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "copy_", failing)
        with pytest.raises(error):
            apply_patch(model, second)
    assert model.state_digest() == before
    assert [active.patch.id for active in model.ledger.active] == [first.id]
    applied.revert()
    assert model.state_digest() == base


def test_a_failure_half_way_through_an_overlay_leaves_no_hook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of()
    patch = random_patch(model, layers=(0, 1, 2))
    real, calls = nn.Module.register_forward_hook, []

    def failing(self: nn.Module, *args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no more hooks")
        return real(self, *args, **kwargs)  # type: ignore[arg-type]  # passed through

    with monkeypatch.context() as patched:
        patched.setattr(nn.Module, "register_forward_hook", failing)
        with pytest.raises(RuntimeError, match="no more hooks"):
            apply_patch(model, patch, mode="overlay")
    assert hooks(model) == 0
    assert model.ledger.active == ()


def test_the_same_patch_twice_is_refused() -> None:
    model = model_of()
    patch = random_patch(model)
    with apply_patch(model, patch):
        state = model.state_digest()
        with pytest.raises(ApplyError, match="applied already"):
            apply_patch(model, patch, mode="overlay")
        assert model.state_digest() == state


def test_weights_changed_from_outside_are_not_overwritten() -> None:
    model = model_of()
    patch = random_patch(model)
    applied = apply_patch(model, patch)
    model.weight(patch.entries[0].site).data[0, 0] += 1
    state = model.state_digest()
    with pytest.raises(RevertError, match="changed from outside"):
        applied.revert()
    with pytest.raises(RevertError, match="changed from outside"):
        apply_patch(model, random_patch(model, seed=1))
    assert model.state_digest() == state
    assert applied.active


def test_an_offloaded_weight_refuses_merge_and_recommends_overlay() -> None:
    model = model_of()
    patch = random_patch(model)
    site = patch.entries[0].site
    module = model.module(site.module)
    module.weight = nn.Parameter(model.weight(site).T.to("meta"), requires_grad=False)
    with pytest.raises(ApplyError, match=r"offloaded.*overlay"):
        apply_patch(model, patch, mode="merge", check_base=False)


def test_a_weight_that_is_no_float_refuses_merge() -> None:
    model = model_of("llama")
    patch = random_patch(model)
    module = model.module(patch.entries[0].site.module)
    module.weight = nn.Parameter(module.weight.data.to(torch.int8), requires_grad=False)  # type: ignore[operator, union-attr]  # a Linear's weight
    with pytest.raises(ApplyError, match=r"quantised.*overlay"):
        apply_patch(model, patch, mode="merge", check_base=False)


def test_a_change_that_overflows_is_refused_and_nothing_changes() -> None:
    model = model_of("llama", torch.float16)
    patch = random_patch(model, scale=1e6)
    before = model.state_digest()
    with pytest.raises(ApplyError, match="overflow"):
        apply_patch(model, patch, mode="merge")
    assert model.state_digest() == before


def test_an_unknown_mode_is_refused() -> None:
    model = model_of()
    with pytest.raises(ApplyError, match="merge or overlay"):
        apply_patch(model, random_patch(model), mode="add")


def test_a_patch_for_another_shape_is_refused_even_unchecked() -> None:
    patch = random_patch(tiny_model("gpt2", d=48))
    with pytest.raises(PatchShapeError, match="does not fit"):
        apply_patch(model_of(), patch, check_base=False)


def test_a_patch_for_another_base_is_refused_with_both_digests() -> None:
    patch, other = random_patch(model_of()), tiny_model("gpt2", seed=7)
    before = other.state_digest()
    with pytest.raises(BaseMismatchError) as caught:
        apply_patch(other, patch)
    name = patch.entries[0].site.parameter
    for digest in (
        patch.header.base.tensors[name].sha256,
        bits.sha256(other.parameter(name)),
    ):
        assert digest in str(caught.value)
    assert "made for 'tiny-gpt2'" in str(caught.value)
    assert "Load the model it was made for" in str(caught.value)
    assert other.state_digest() == before


def test_the_base_check_can_be_left_out() -> None:
    patch, other = random_patch(model_of()), tiny_model("gpt2", seed=7)
    with apply_patch(other, patch, check_base=False) as applied:
        assert applied.active


def test_a_tied_weight_is_one_weight_under_both_names() -> None:
    model = model_of("llama")
    low, high = model.module("model.layers.0.mlp"), model.module("model.layers.1.mlp")
    high.down_proj.weight = low.down_proj.weight  # type: ignore[union-attr]  # Linears
    before = model.state_digest()
    patch = random_patch(model, layers=(0, 1), rank=1)
    weight = model.weight(patch.entries[0].site)
    expected = (weight.double() + patch.entries[0].delta() + patch.entries[1].delta()).float()
    with apply_patch(model, patch):
        assert torch.equal(model.weight(patch.entries[0].site), expected)
    assert model.state_digest() == before
    assert patch.header.base.tied == (tuple(sorted(e.site.parameter for e in patch.entries)),)


@pytest.mark.parametrize("mode", MODES)
def test_generation_under_a_patch_does_not_disturb_the_way_back(mode: str) -> None:
    model = model_of()
    before = model.state_digest()
    with apply_patch(model, random_patch(model), mode=mode):
        model.generate(["The capital of Norway is"], max_new_tokens=3)
    assert model.state_digest() == before


def test_an_overlay_in_bfloat16_keeps_what_merging_rounds_away() -> None:
    model = model_of("llama", torch.bfloat16)
    patch = random_patch(model, scale=1e-4)
    module = model.module(patch.entries[0].site.module)
    inputs = torch.randn(64, module.weight.shape[1], dtype=torch.bfloat16)  # type: ignore[union-attr, misc, call-overload, arg-type]  # a Linear's weight
    wanted = inputs.double() @ patch.entries[0].delta().T

    def error(mode: str) -> float:
        inner = module.forward
        clean = inner(inputs).double()
        with apply_patch(model, patch, mode=mode):
            found = module(inputs).double() - clean
        return float((found - wanted).norm() / wanted.norm())

    assert error("overlay") < error("merge")
