"""Running rows from one token on gives what running them whole gives."""

from __future__ import annotations

import pytest
import torch

from editkit_core.models.trace import record
from editkit_core.numerics.suffixes import Suffixes
from editkit_core.testing.models import TINY_FAMILIES, tiny_model

TEXTS = (
    "The capital of Norway is Oslo",
    "Peru",
    "Winter came early that year, and the harbour of Peru did not freeze for long",
    "Peru speaks Spanish",
)


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
@pytest.mark.parametrize("at", [(3, 0, 9, 0), (0, 0, 0, 0), (4, 1, 20, 3)])
def test_states_equal_those_of_whole_rows(family: str, at: tuple[int, ...]) -> None:
    model = tiny_model(family)
    rows = [model.encode(text).ids for text in TEXTS]
    body = model.module(model.family.body)
    with torch.no_grad():
        states = Suffixes.split(model, rows, at).states()
        for number, (row, index) in enumerate(zip(rows, at, strict=True)):
            whole = body(input_ids=torch.tensor([row])).last_hidden_state[0, index:]
            found = states[number, : len(row) - index]
            torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-4)


def test_the_second_pass_equals_the_first() -> None:
    model = tiny_model("llama")
    rows = [model.encode(text).ids for text in TEXTS]
    with torch.no_grad():
        suffixes = Suffixes.split(model, rows, (3, 0, 9, 0))
        assert torch.equal(suffixes.states(), suffixes.states())


def test_only_the_later_tokens_are_run() -> None:
    model = tiny_model("gpt2")
    row = model.encode(TEXTS[2]).ids
    suffixes = Suffixes.split(model, [row], [len(row) - 3])
    lengths = []
    block = model.module(model.family.block(0))
    handle = block.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    with torch.no_grad():
        suffixes.states()
    handle.remove()
    assert lengths == [3]


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
@pytest.mark.parametrize("at", [(3, 0, 9, 0), (0, 0, 0, 0)])
def test_the_blocks_above_a_layer_give_what_all_blocks_give(
    family: str, at: tuple[int, ...]
) -> None:
    model = tiny_model(family)
    rows = [model.encode(text).ids for text in TEXTS]
    with torch.no_grad():
        suffixes = Suffixes.split(model, rows, at)
        for layer in range(model.n_layers):
            block = model.family.block(layer)
            with record(model.model, [block]) as seen:
                whole = suffixes.states()
            assert torch.equal(suffixes.above(layer).states(seen[block]), whole)


def test_chosen_rows_above_a_layer_give_what_they_gave_among_all() -> None:
    model = tiny_model("llama")
    rows = [model.encode(text).ids for text in TEXTS]
    block = model.family.block(0)
    with torch.no_grad():
        suffixes = Suffixes.split(model, rows, (3, 0, 9, 0))
        with record(model.model, [block]) as seen:
            whole = suffixes.states()
        chosen = torch.tensor([2, 1])
        found = suffixes.above(0).keep(chosen).states(seen[block][chosen])
    real = suffixes.batch.attention_mask[chosen][:, -whole.shape[1] :].bool()
    torch.testing.assert_close(found[real], whole[chosen][real], rtol=1e-4, atol=1e-5)


def test_running_the_blocks_above_a_layer_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gpt2")
    modules = [id(module) for module in model.model.modules()]
    digest = model.state_digest()
    suffixes = Suffixes.split(model, [model.encode(TEXTS[0]).ids], [0])
    suffixes.above(1)
    assert [id(module) for module in model.model.modules()] == modules
    assert model.state_digest() == digest
    assert not any(module._forward_hooks for module in model.model.modules())
