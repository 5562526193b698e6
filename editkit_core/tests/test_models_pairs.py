"""Prompts with targets: what predicts what, for decoders and encoder-decoders alike."""

from __future__ import annotations

import attrs
import pytest
import torch

from editkit_core.errors import EmptyTargetError, InvalidRequestError, PromptTooLongError
from editkit_core.models.editable import EditableModel
from editkit_core.models.pairs import (
    IGNORED,
    decoder_start,
    nll,
    pair_batch,
    pair_logits,
    pair_row,
)
from editkit_core.models.text import join
from editkit_core.testing import (
    TINY_ENCODER_DECODERS,
    TINY_FAMILIES,
    tiny_model,
    tiny_tokenizer,
)

PAIRS = (
    ("The capital of Norway is", "Oslo"),
    ("Marie Curie", "was born in Warsaw and worked in Paris"),
    ("What language do people speak in Brazil? They speak", "Portuguese."),
)
ANSWERING = sorted(TINY_ENCODER_DECODERS)


@pytest.fixture(scope="module", params=sorted(TINY_FAMILIES))
def decoder(request: pytest.FixtureRequest) -> EditableModel:
    return tiny_model(request.param)


@pytest.fixture(scope="module", params=ANSWERING)
def answering(request: pytest.FixtureRequest) -> EditableModel:
    return tiny_model(request.param)


def scored(model: EditableModel, batch) -> torch.Tensor:
    with torch.no_grad():
        return nll(pair_logits(model, batch), batch.labels)


# -- against transformers' own loss ----------------------------------------------------------------


def test_a_decoders_rows_have_transformers_own_loss(decoder: EditableModel) -> None:
    losses = []
    for prompt, target in PAIRS:
        ids = decoder.tokenizer(join(prompt, target), return_tensors="pt").input_ids
        labels = ids.clone()
        labels[:, : len(decoder.encode(prompt).ids)] = -100  # the joined text begins with these
        with torch.no_grad():
            losses.append(float(decoder.model(input_ids=ids, labels=labels).loss))
    assert scored(decoder, pair_batch(decoder, PAIRS)).tolist() == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("end", [False, True])
def test_an_encoder_decoders_rows_have_transformers_own_loss(
    answering: EditableModel, end: bool
) -> None:
    """transformers shifts labels right by itself; its tokenizer ends the answer with EOS."""
    losses = []
    for prompt, target in PAIRS:
        source = answering.tokenizer(prompt, return_tensors="pt").input_ids
        labels = answering.tokenizer(target, return_tensors="pt").input_ids
        assert int(labels[0, -1]) == answering.tokenizer.eos_token_id
        labels = labels if end else labels[:, :-1]
        with torch.no_grad():
            losses.append(float(answering.model(input_ids=source, labels=labels).loss))
    batch = pair_batch(answering, PAIRS, end=end)
    assert scored(answering, batch).tolist() == pytest.approx(losses, abs=1e-5)


def test_an_encoder_decoders_gradient_is_that_of_transformers_own_loss(
    answering: EditableModel,
) -> None:
    prompt, target = PAIRS[1]
    weight = answering.weight(answering.site(1, stack="encoder")).requires_grad_(True)
    try:
        source = answering.tokenizer(prompt, return_tensors="pt").input_ids
        labels = answering.tokenizer(target, return_tensors="pt").input_ids[:, :-1]
        loss = answering.model(input_ids=source, labels=labels).loss
        (expected,) = torch.autograd.grad(loss, weight)
        batch = pair_batch(answering, [(prompt, target)])
        ours = nll(pair_logits(answering, batch), batch.labels).sum()
        (found,) = torch.autograd.grad(ours, weight)
    finally:
        weight.requires_grad_(False)
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


# -- padding and places ----------------------------------------------------------------------------


def test_the_padding_side_changes_no_decoder_row(decoder: EditableModel) -> None:
    right, left = (scored(decoder, pair_batch(decoder, PAIRS, side)) for side in ("right", "left"))
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)


def test_rows_together_score_as_each_alone(answering: EditableModel) -> None:
    together = scored(answering, pair_batch(answering, PAIRS, end=True))
    alone = [float(scored(answering, pair_batch(answering, [pair], end=True))) for pair in PAIRS]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_decoders_query_is_the_last_token_of_its_prompt(decoder, side) -> None:
    batch = pair_batch(decoder, PAIRS, side)
    assert batch.queries.dtype == torch.int64
    for row, (prompt, _) in enumerate(PAIRS):
        column = int(batch.queries[row])
        assert int(batch.inputs["input_ids"][row, column]) == decoder.encode(prompt).ids[-1]
        assert batch.labels[row, :column].eq(IGNORED).all()
        assert int(batch.labels[row, column]) == batch.rows[row].target[0]


def test_an_encoder_decoders_query_is_the_last_token_its_encoder_reads(
    answering: EditableModel,
) -> None:
    batch = pair_batch(answering, PAIRS)
    mask = batch.inputs["attention_mask"]
    assert batch.queries.tolist() == (mask.sum(dim=1) - 1).tolist()
    read = batch.inputs["input_ids"][torch.arange(len(PAIRS)), batch.queries]
    assert read.tolist() == [answering.tokenizer.eos_token_id] * len(PAIRS)


def test_a_decoder_behind_an_encoder_reads_the_start_and_then_the_answer(
    answering: EditableModel,
) -> None:
    batch = pair_batch(answering, PAIRS[:1])
    given, labels = batch.inputs["decoder_input_ids"][0], batch.labels[0]
    answer = answering.tokenizer("Oslo").input_ids[:-1]
    assert given.tolist() == [answering.tokenizer.pad_token_id, *answer]
    assert labels.tolist() == [*answer, IGNORED]


def test_the_end_is_a_label_only_when_asked_for(answering: EditableModel) -> None:
    plain, ended = (pair_row(answering, *PAIRS[0], end=end) for end in (False, True))
    assert ended.target == (*plain.target, answering.tokenizer.eos_token_id)
    assert ended.source == plain.source


def test_a_decoders_answer_stands_within_a_text_so_asking_for_its_end_changes_nothing() -> None:
    model = tiny_model("llama", tokenizer=tiny_tokenizer("unigram", eos=True))
    assert pair_row(model, *PAIRS[0], end=True) == pair_row(model, *PAIRS[0])


def test_spaces_at_a_prompts_end_are_not_read_by_an_encoder(answering: EditableModel) -> None:
    prompt, target = PAIRS[0]
    assert pair_row(answering, f"{prompt}  ", target) == pair_row(answering, prompt, target)


def test_a_bos_that_the_tokenizer_adds_is_given_not_predicted() -> None:
    """As BART's does: transformers' loss over the labels after it is ours."""
    tokenizer = tiny_tokenizer("unigram", bos=True, eos=True, pad=True)
    model = tiny_model("t5", tokenizer=tokenizer)
    prompt, target = PAIRS[0]
    labels = tokenizer(target, return_tensors="pt").input_ids[:, :-1]
    source = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        chances = model.model(input_ids=source, labels=labels).logits[0].log_softmax(-1)
    each = -chances.gather(1, labels[0, :, None])[:, 0]
    row = pair_row(model, prompt, target)
    assert row.target == tuple(labels[0, 1:].tolist())
    assert scored(model, pair_batch(model, [(prompt, target)])).tolist() == pytest.approx(
        [float(each[1:].mean())], abs=1e-5
    )


# -- asking ----------------------------------------------------------------------------------------


def test_the_queries_are_said_during_the_forward_pass_only(answering: EditableModel) -> None:
    batch, seen = pair_batch(answering, PAIRS), []
    handle = answering.module(answering.family.head).register_forward_pre_hook(
        lambda *_: seen.append(answering.queries)
    )
    try:
        scored(answering, batch)
    finally:
        handle.remove()
    assert seen[0] is batch.queries
    assert answering.queries is None


def test_what_was_asked_before_is_asked_again_even_after_an_error() -> None:
    model = tiny_model()
    outer, inner = torch.tensor([1]), torch.tensor([2])
    with model.asking(outer):
        with pytest.raises(RuntimeError, match="stop"):
            fail(model, inner)
        assert model.queries is outer
    assert model.queries is None


def fail(model: EditableModel, queries: torch.Tensor) -> None:
    with model.asking(queries):
        assert model.queries is queries
        raise RuntimeError("stop")


# -- the start token -------------------------------------------------------------------------------


def test_the_decoder_starts_as_the_configuration_says_else_as_generation_does_else_padded() -> None:
    model = tiny_model("t5")
    model.model.config.decoder_start_token_id = 7
    model.model.generation_config.decoder_start_token_id = 5
    assert decoder_start(model) == 7
    model.model.config.decoder_start_token_id = None
    assert decoder_start(model) == 5
    model.model.generation_config.decoder_start_token_id = None
    assert decoder_start(model) == model.tokenizer.pad_token_id


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["", "  "])
def test_an_empty_target_is_refused(answering: EditableModel, target: str) -> None:
    with pytest.raises(EmptyTargetError, match="is empty"):
        pair_batch(answering, [("Peru", target)])


def test_a_prompt_without_a_token_is_refused() -> None:
    model = tiny_model("t5", tokenizer=tiny_tokenizer("unigram", bos=False, pad=True))
    with pytest.raises(InvalidRequestError, match="has no token"):
        pair_batch(model, [("", "Oslo")])


@pytest.mark.parametrize("long", ["prompt", "answer"])
def test_what_an_encoder_decoder_with_a_limit_cannot_read_is_refused(long: str) -> None:
    model = tiny_model("t5")
    model.model.config.max_position_embeddings = 8
    text = "one two three four five six"
    pair = (text, "Oslo") if long == "prompt" else ("Peru", text)
    with pytest.raises(PromptTooLongError, match=f"The {long} 'one two"):
        pair_batch(model, [pair])


def test_a_decoders_prompt_that_does_not_fit_with_its_answer_is_refused() -> None:
    model = tiny_model("llama", max_positions=8)
    with pytest.raises(PromptTooLongError, match="with its answer"):
        pair_batch(model, [("The capital of Norway is", "the old city of Oslo")])


def test_no_pair_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        pair_batch(tiny_model(), [])


def test_rows_are_values(answering: EditableModel) -> None:
    row = pair_row(answering, *PAIRS[0])
    assert attrs.evolve(row) == row
    assert len(row) == len(row.source) + len(row.ids)
