"""A codebook at run time: exact inside a ball, nothing outside, row by row, under every cache."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from gated import (
    PLACES,
    PROMPTS,
    REPLACEMENTS,
    codebook_of,
    ids_of,
    outputs_of,
    patch_of,
    patch_on,
    set_by_hand,
    site_of,
)
from torch import Tensor

from editkit_core.errors import ApplyError, InvalidParameterError, UnsupportedModuleError
from editkit_core.metrics.ask import Ask, Forced, ForcedReply, Greedy, Sampled, Text
from editkit_core.metrics.engine import answer
from editkit_core.models.editable import EditableModel
from editkit_core.models.families import Stack
from editkit_core.models.pairs import decoder_start, pair_batch, pair_logits
from editkit_core.models.text import pad_batch
from editkit_core.patch import CodebookEntry, apply_patch
from editkit_core.patch.gate_query import replaced_at
from editkit_core.patch.kinds.codebook import Replacement
from editkit_core.testing.models import tiny_model

everywhere = pytest.mark.parametrize(("family", "stack"), PLACES)
EDITED, OTHER = PROMPTS[0], PROMPTS[1]


@torch.no_grad()
def read(model: EditableModel, prompts: Sequence[str], side: str = "right") -> Tensor:
    """Logits of prompts as one batch, at each row's own tokens; decided by the mask alone."""
    rows = [ids_of(model, prompt) for prompt in prompts]
    if model.is_encoder_decoder:
        batch = pad_batch(rows, model.pad_id)
        out = model.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_input_ids=torch.tensor([[decoder_start(model), 5]] * len(rows)),
        )
        found: Tensor = out.logits
        return found
    batch = pad_batch(rows, model.pad_id, side)  # type: ignore[arg-type]  # one of the two sides
    logits: Tensor = model.model(**batch.inputs(), use_cache=False).logits
    return logits


def values(patch_entry: CodebookEntry) -> Tensor:
    return torch.from_numpy(patch_entry.codebook.values.copy())


# -- inside and outside -----------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_outside_every_ball_the_logits_are_bit_identical(
    family: str, stack: Stack, replacement: Replacement
) -> None:
    model = tiny_model(family)
    before = read(model, [OTHER])
    with apply_patch(model, patch_on(model, stack=stack, replacement=replacement)):
        after = read(model, [OTHER])
    assert torch.equal(before, after)


def test_outside_every_ball_the_very_tensor_goes_through() -> None:
    model = tiny_model("gpt2")
    patch = patch_on(model)
    before = outputs_of(model, site_of(model))
    with before as raw, apply_patch(model, patch), outputs_of(model, site_of(model)) as gated:
        read(model, [OTHER])
    assert gated[0] is raw[0]


@everywhere
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_inside_a_ball_the_output_is_the_value_exactly_and_only_there(
    family: str, stack: Stack, replacement: Replacement
) -> None:
    model = tiny_model(family)
    patch = patch_on(model, stack=stack, replacement=replacement)
    (entry,) = patch.module_entries
    assert isinstance(entry, CodebookEntry)
    with outputs_of(model, entry.site) as found:
        read(model, [EDITED])
        with apply_patch(model, patch), outputs_of(model, entry.site) as gated:
            read(model, [EDITED])
    raw, now = found[0][0], gated[0][0]  # (length, d_out)
    query = 0 if stack == "decoder" and model.is_encoder_decoder else len(raw) - 1
    there = {
        "replace_last": [query],
        "replace_prompt": list(range(query)),
        "replace_all": list(range(len(raw))),
    }[replacement]
    for column in range(len(raw)):
        expected = values(entry)[0] if column in there else raw[column]
        assert torch.equal(now[column], expected), column


def test_values_are_cast_to_the_dtype_of_the_output() -> None:
    model = tiny_model("llama")
    model.model.to(torch.bfloat16)
    patch = patch_on(model)
    (entry,) = patch.module_entries
    assert isinstance(entry, CodebookEntry)
    with apply_patch(model, patch), outputs_of(model, entry.site) as gated:
        read(model, [EDITED])
    assert gated[0].dtype == torch.bfloat16
    assert torch.equal(gated[0][0, -1], values(entry)[0].to(torch.bfloat16))


def test_the_ball_ends_at_its_radius() -> None:
    model = tiny_model("gpt2")
    site = site_of(model)
    book = codebook_of(model, site=site)
    before = read(model, [EDITED])
    for shift, routed in ((0.0499, True), (0.0501, False)):
        keys = book.keys.copy()
        keys[0, 0] += shift
        moved = type(book)(
            keys=keys, values=book.values, radii=book.radii, labels=book.labels,
            edit_ids=book.edit_ids,
        )  # fmt: skip
        with apply_patch(model, patch_of(model, (site, moved))):
            assert torch.equal(read(model, [EDITED]), before) is not routed


def test_of_several_balls_the_nearest_row_counts() -> None:
    model = tiny_model("gpt2")
    site = site_of(model)
    book = codebook_of(model, PROMPTS, site=site, eps=500.0)
    labels = book.labels[:1].repeat(len(PROMPTS), axis=0)
    near = type(book)(
        keys=book.keys, values=book.values, radii=book.radii, labels=labels, edit_ids=book.edit_ids
    )
    with apply_patch(model, patch_of(model, (site, near))):
        for row, prompt in enumerate(PROMPTS):
            with outputs_of(model, site) as gated:
                read(model, [prompt])
            assert torch.equal(gated[0][0, -1], torch.from_numpy(book.values[row].copy()))


def test_one_key_among_many_thousand_is_found() -> None:
    model = tiny_model("gpt2")
    site = site_of(model)
    book = codebook_of(model, site=site)
    n = 20_000
    generator = torch.Generator().manual_seed(0)
    far = torch.randn(n, book.keys.shape[1], generator=generator) * 5
    far[12_345] = torch.from_numpy(book.keys[0].copy())
    many = type(book)(
        keys=far,
        values=torch.randn(n, book.values.shape[1], generator=generator),
        radii=torch.full((n,), 0.05),
        labels=book.labels.repeat(n, axis=0),
        edit_ids=book.edit_ids.repeat(n, axis=0),
    )
    with apply_patch(model, patch_of(model, (site, many))), outputs_of(model, site) as gated:
        read(model, [EDITED, OTHER])
    last = len(ids_of(model, EDITED)) - 1
    assert torch.equal(gated[0][0, last], torch.from_numpy(many.values[12_345].copy()))


# -- rows and padding -------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_each_row_of_a_batch_is_decided_by_itself(side: str, replacement: Replacement) -> None:
    model = tiny_model("llama")
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[0]]
    edited = [PROMPTS[0], PROMPTS[2]]
    with apply_patch(model, patch_on(model, edited, replacement=replacement)):
        together = read(model, prompts, side)
        alone = [read(model, [prompt])[0] for prompt in prompts]
    for row, expected in zip(together, alone, strict=True):
        own = row[-len(expected) :] if side == "left" else row[: len(expected)]
        assert torch.allclose(own, expected, atol=1e-4)


def test_rows_outside_stay_bit_identical_beside_a_row_inside() -> None:
    model = tiny_model("gpt2")
    before = read(model, PROMPTS, "left")
    with apply_patch(model, patch_on(model)):
        after = read(model, PROMPTS, "left")
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])


@everywhere
def test_prompts_and_targets_in_one_pass_are_decided_at_the_prompts_end(
    family: str, stack: Stack
) -> None:
    model = tiny_model(family)
    pairs = [(EDITED, "Lima"), (OTHER, "Lima")]
    with apply_patch(model, patch_on(model, stack=stack)) as applied:
        (entry,) = applied.patch.module_entries
        assert isinstance(entry, CodebookEntry)
        batch = pair_batch(model, pairs)
        with torch.no_grad():
            found = pair_logits(model, batch)
    query = 0 if model.is_encoder_decoder and stack == "decoder" else int(batch.queries[0])

    def by_hand(output: Tensor) -> None:
        output[0, query] = values(entry)[0]

    with set_by_hand(model, entry.site, by_hand), torch.no_grad():
        assert torch.equal(found, pair_logits(model, batch))


def test_a_row_without_a_query_is_not_decided() -> None:
    model = tiny_model("gpt2")
    before = read(model, [EDITED])
    with apply_patch(model, patch_on(model)), model.asking(torch.tensor([-1])):
        assert torch.equal(read(model, [EDITED]), before)


def test_queries_that_do_not_fit_the_pass_are_refused() -> None:
    model = tiny_model("gpt2")
    refused = pytest.raises(InvalidParameterError, match="2 prompts")
    with apply_patch(model, patch_on(model)), model.asking(torch.tensor([1, 2])), refused:
        read(model, [EDITED])


def test_after_a_pass_that_failed_the_next_is_decided_anew() -> None:
    model = tiny_model("gpt2")
    with apply_patch(model, patch_on(model)):
        expected = read(model, [EDITED])
        with model.asking(torch.tensor([1, 2])), pytest.raises(InvalidParameterError):
            read(model, [EDITED])
        assert torch.equal(read(model, [EDITED]), expected)


def test_gradients_flow_past_a_gate_and_not_through_what_it_replaced() -> None:
    model = tiny_model("gpt2")
    weight = model.parameter(site_of(model).parameter)
    weight.requires_grad_(True)
    try:
        with apply_patch(model, patch_on(model, replacement="replace_all")):
            batch = pair_batch(model, [(EDITED, "Lima")])
            (gradient,) = torch.autograd.grad(pair_logits(model, batch).sum(), [weight])
        assert not gradient.any()
    finally:
        weight.requires_grad_(False)


# -- going on under a cache -------------------------------------------------------------------


@torch.no_grad()
def recomputed(model: EditableModel, prompt: str, n: int) -> list[int]:
    """Greedy tokens, the whole text read anew for each, without a cache."""
    ids, new = ids_of(model, prompt), list[int]()
    for _ in range(n):
        if model.is_encoder_decoder:
            logits = model.model(
                input_ids=torch.tensor([ids]),
                decoder_input_ids=torch.tensor([[decoder_start(model), *new]]),
                use_cache=False,
            ).logits
        else:
            with model.asking(torch.tensor([len(ids) - 1])):
                logits = model.model(torch.tensor([[*ids, *new]]), use_cache=False).logits
        new.append(int(logits[0, -1].argmax()))
    return new


def padded(model: EditableModel, prompts: Sequence[str]) -> dict[str, Tensor]:
    side = "right" if model.is_encoder_decoder else "left"
    batch = pad_batch([ids_of(model, prompt) for prompt in prompts], model.pad_id, side)  # type: ignore[arg-type]  # as above
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def generated(
    model: EditableModel, prompts: Sequence[str], n: int, **how: object
) -> list[list[int]]:
    """New tokens by transformers' own generate, as a user calls it."""
    given = padded(model, prompts)
    out = model.model.generate(
        **given, max_new_tokens=n, min_new_tokens=n, pad_token_id=model.pad_id, **how
    )
    start = 1 if model.is_encoder_decoder else given["input_ids"].shape[1]
    rows: list[list[int]] = out[:, start:].tolist()
    return rows


def without_stop(model: EditableModel) -> EditableModel:
    model.model.generation_config.eos_token_id = None
    return model


@everywhere
@pytest.mark.parametrize("replacement", ["replace_last", "replace_all"])
def test_what_is_generated_under_a_cache_is_what_reading_all_anew_gives(
    family: str, stack: Stack, replacement: Replacement
) -> None:
    model = without_stop(tiny_model(family))
    bare = generated(model, PROMPTS, 6, do_sample=False)
    patch = patch_on(model, stack=stack, replacement=replacement, size=30.0)
    with apply_patch(model, patch):
        expected = [recomputed(model, prompt, 6) for prompt in PROMPTS]
        found = generated(model, PROMPTS, 6, do_sample=False)
    assert found == expected
    assert found[0] != bare[0]
    assert found[1:] == bare[1:]


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("replacement", ["replace_last", "replace_all"])
def test_beams_of_a_batch_are_those_of_each_row_with_its_outputs_set_by_hand(
    family: str, replacement: Replacement
) -> None:
    model = without_stop(tiny_model(family))
    patch = patch_on(model, replacement=replacement)
    (entry,) = patch.module_entries
    assert isinstance(entry, CodebookEntry)
    value = values(entry)[0]
    first = [True]

    def by_hand(output: Tensor) -> None:
        if replacement == "replace_all":
            output[:] = value
        elif first[0]:
            output[:, -1] = value  # the start token, or the last of the prompt
            first[0] = False

    how = {"do_sample": False, "num_beams": 3}
    with set_by_hand(model, entry.site, by_hand):
        expected = generated(model, [EDITED], 6, **how)
    others = [generated(model, [prompt], 6, **how)[0] for prompt in PROMPTS[1:]]
    with apply_patch(model, patch):
        assert generated(model, PROMPTS, 6, **how) == [*expected, *others]


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_cache_of_another_kind_changes_nothing(kind: str) -> None:
    model = without_stop(tiny_model("llama"))
    with apply_patch(model, patch_on(model, replacement="replace_all")):
        expected = [recomputed(model, prompt, 5) for prompt in PROMPTS]
        found = generated(model, PROMPTS, 5, do_sample=False, cache_implementation=kind)
    assert found == expected


def test_a_sequence_begun_anew_is_decided_anew() -> None:
    model = without_stop(tiny_model("gpt2"))
    bare = generated(model, [OTHER], 5, do_sample=False)
    with apply_patch(model, patch_on(model, replacement="replace_all")):
        edited = generated(model, [EDITED], 5, do_sample=False)
        assert generated(model, [OTHER], 5, do_sample=False) == bare
        assert generated(model, [EDITED], 5, do_sample=False) == edited


def test_a_cache_that_is_emptied_and_used_again_forgets() -> None:
    from transformers import DynamicCache

    model = tiny_model("gpt2")
    cache = DynamicCache()
    with apply_patch(model, patch_on(model, replacement="replace_all")), torch.no_grad():
        model.model(**padded(model, [EDITED]), past_key_values=cache)
        cache.crop(-len(ids_of(model, EDITED)))  # all of it
        model.model(**padded(model, [OTHER]), past_key_values=cache)
        with outputs_of(model, site_of(model)) as found:
            step = torch.tensor([[5]])
            model.model(input_ids=step, past_key_values=cache)
    with torch.no_grad(), outputs_of(model, site_of(model)) as bare:
        ids = torch.tensor([[*ids_of(model, OTHER), 5]])
        model.model(input_ids=ids, use_cache=False)
    assert torch.allclose(found[0][0, -1], bare[0][0, -1], atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_decisions_follow_the_rows_of_a_cache_that_is_copied_and_chosen_from(family: str) -> None:
    model = tiny_model(family)
    patch = patch_on(model, replacement="replace_all")
    (entry,) = patch.module_entries
    assert isinstance(entry, CodebookEntry)
    given = padded(model, PROMPTS)
    more = {"position_ids": (given["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}
    if model.is_encoder_decoder:
        more = {"decoder_input_ids": torch.full((3, 1), decoder_start(model))}
    with apply_patch(model, patch), torch.no_grad():
        out = model.model(**given, **more, use_cache=True)
        chosen = copy.deepcopy(out.past_key_values)
        chosen.batch_select_indices(torch.tensor([2, 0, 0]))
        turned = copy.deepcopy(out.past_key_values)
        turned.reorder_cache(torch.tensor([1, 2, 0]))
        doubled = copy.deepcopy(out.past_key_values)
        doubled.batch_repeat_interleave(2)
        for cache, rows in (
            (chosen, [2, 0, 0]),
            (turned, [1, 2, 0]),
            (doubled, [0, 0, 1, 1, 2, 2]),
            (out.past_key_values, [0, 1, 2]),
        ):
            step = torch.full((len(rows), 1), 5)
            mask = given["attention_mask"][rows]
            with outputs_of(model, entry.site) as found:
                if model.is_encoder_decoder:
                    states = (out.encoder_last_hidden_state[rows],)
                    model.model(
                        encoder_outputs=states,
                        attention_mask=mask,
                        decoder_input_ids=step,
                        past_key_values=cache,
                    )
                else:
                    mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
                    model.model(input_ids=step, attention_mask=mask, past_key_values=cache)
            replaced = [torch.equal(row, values(entry)[0]) for row in found[-1][:, -1]]
            assert replaced == [row == 0 for row in rows]


def test_a_cache_made_under_another_gate_decides_nothing() -> None:
    model = tiny_model("gpt2")
    patch = patch_on(model, replacement="replace_all")
    with apply_patch(model, patch), torch.no_grad():
        cache = model.model(**padded(model, [EDITED]), use_cache=True).past_key_values
    with apply_patch(model, patch), torch.no_grad(), outputs_of(model, site_of(model)) as found:
        model.model(input_ids=torch.tensor([[5]]), past_key_values=cache)
    (entry,) = patch.module_entries
    assert isinstance(entry, CodebookEntry)
    assert not torch.equal(found[0][0, -1], values(entry)[0])


# -- the engine -------------------------------------------------------------------------------


def _asks() -> list[Ask]:
    asks: list[Ask] = []
    for prompt in PROMPTS:
        asks += [Forced(prompt, "Lima and Oslo"), Forced(prompt, "Paris")]
        asks += [Greedy(prompt, max_new_tokens=6), Sampled(prompt, length=14)]
    return asks


@everywhere
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_the_engines_answers_are_those_of_one_row_at_a_time_read_anew(
    family: str, stack: Stack, replacement: Replacement
) -> None:
    model = tiny_model(family)
    edited = [PROMPTS[0], PROMPTS[2]]
    with apply_patch(model, patch_on(model, edited, stack, replacement=replacement)):
        together = answer(model, _asks())
        for ask in _asks():
            if isinstance(ask, Forced):
                batch = pair_batch(model, [(ask.prompt, ask.target)])
                with torch.no_grad():
                    chances = pair_logits(model, batch)[0].log_softmax(dim=-1)
                places = (batch.labels[0] >= 0).nonzero()[:, 0]
                expected = -chances[places, batch.labels[0, places]]
                reply = together[ask]
                assert isinstance(reply, ForcedReply)
                assert reply.nll == pytest.approx(expected.tolist(), abs=2e-4)
            else:
                assert together[ask] == answer(model, [ask], rows=1)[ask]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_alone_is_decided_at_its_first_token(side: str) -> None:
    model = tiny_model("gpt2")
    ask = Text(f"{EDITED} Oslo")
    before = answer(model, [ask], side=side)[ask]  # type: ignore[arg-type]  # one of the two sides
    with apply_patch(model, patch_on(model, [EDITED, f"{EDITED} Oslo"], replacement="replace_all")):
        assert answer(model, [ask], side=side)[ask] == before  # type: ignore[arg-type]  # as above


def test_model_generate_is_what_reading_all_anew_gives() -> None:
    model = tiny_model("qwen2")
    with apply_patch(model, patch_on(model, replacement="replace_all")):
        new = recomputed(model, EDITED, 5)
        whole = model.tokenizer.decode([*ids_of(model, EDITED), *new])
        assert f"{EDITED}{model.generate([OTHER, EDITED], max_new_tokens=5)[1]}" == whole


# -- the hooks --------------------------------------------------------------------------------


def test_inference_never_changes_the_codebook() -> None:
    model = tiny_model("gpt2")
    patch = patch_on(model, PROMPTS, replacement="replace_all")
    before = {name: array.tobytes() for name, array in patch.tensors().items()}
    with apply_patch(model, patch):
        first = read(model, PROMPTS)
        model.generate(PROMPTS, max_new_tokens=4)
        assert torch.equal(read(model, PROMPTS), first)
    assert {name: array.tobytes() for name, array in patch.tensors().items()} == before


def test_modules_and_names_of_the_model_stay_as_they_are() -> None:
    model = tiny_model("gpt2")
    names, modules = list(model.model.state_dict()), list(model.model.modules())
    with apply_patch(model, patch_on(model)):
        assert list(model.model.state_dict()) == names
        assert list(model.model.modules()) == modules


def test_two_layers_can_be_gated_at_once() -> None:
    model = tiny_model("gpt2")
    low, high = site_of(model, layer=0), site_of(model, layer=2)
    first = patch_of(model, (low, codebook_of(model, site=low)))
    with apply_patch(model, first):
        book = codebook_of(model, site=high, seed=1)  # its key is what the first one leads to
        second = patch_of(model, (high, book))
        with apply_patch(model, second), outputs_of(model, high) as found:
            read(model, [EDITED])
    assert torch.equal(found[0][0, -1], torch.from_numpy(book.values[0].copy()))


def test_a_module_outside_the_blocks_is_not_gated() -> None:
    from editkit_core.types import Site

    model = tiny_model("llama")
    site = Site(module="lm_head", parameter="lm_head.weight", layer=0)
    d_out, d_in = model.weight(site).shape
    book = codebook_of(model, site=site_of(model))
    wide = type(book)(
        keys=torch.zeros(1, d_in),
        values=torch.zeros(1, d_out),
        radii=book.radii,
        labels=book.labels,
        edit_ids=book.edit_ids,
    )
    with pytest.raises(ApplyError, match="outside of them"):
        apply_patch(model, patch_of(model, (site, wide)))


def test_a_module_that_reads_no_text_is_refused_when_it_runs() -> None:
    from editkit_core.types import Site

    model = tiny_model("t5")
    name = "decoder.block.0.layer.1.EncDecAttention.k"
    site = Site(module=name, parameter=f"{name}.weight", layer=0)
    d_out, d_in = model.weight(site).shape
    book = codebook_of(model, site=site_of(model))
    other = type(book)(
        keys=torch.zeros(1, d_in),
        values=torch.zeros(1, d_out),
        radii=book.radii,
        labels=book.labels,
        edit_ids=book.edit_ids,
    )
    refused = pytest.raises(UnsupportedModuleError, match=r"EncDecAttention\.k")
    with apply_patch(model, patch_of(model, (site, other))), refused:
        read(model, [EDITED])


def test_where_values_go_follows_from_the_query() -> None:
    found = {mode: replaced_at(mode, torch.tensor([2, 0, -1]), 4).int() for mode in REPLACEMENTS}
    assert found["replace_last"].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert found["replace_prompt"].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found["replace_all"].tolist() == [[1, 1, 1, 1]] * 3
