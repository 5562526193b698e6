"""The engine against plain forwards and transformers' own generation, one prompt at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from editkit_core.errors import (
    EmptyTargetError,
    InvalidParameterError,
    PromptTooLongError,
    UnsupportedModelError,
)
from editkit_core.metrics.ask import Forced, Greedy, Replies, Sampled, Text, from_plain, to_plain
from editkit_core.metrics.cache import ReplyCache, model_fingerprint
from editkit_core.metrics.engine import answer
from editkit_core.metrics.texts import cut, has_stopped
from editkit_core.models.editable import EditableModel
from editkit_core.models.families import Family
from editkit_core.models.text import join
from editkit_core.patch.apply import apply_patch
from editkit_core.testing.models import TINY_FAMILIES, tiny_model, tiny_tokenizer
from editkit_core.testing.patches import random_patch

PROMPTS = (
    "The capital of Norway is",
    "Marie Curie was born in ",
    "Gold",
    "What language do people speak in Brazil? They speak",
)
FORCED = [Forced(PROMPTS[0], "Oslo"), Forced(PROMPTS[1], "the old city"), Forced(PROMPTS[2], "Au.")]
ASKS = [
    *FORCED,
    *(Greedy(prompt, 6) for prompt in PROMPTS),
    *(Sampled(prompt, length=20, seed=3) for prompt in PROMPTS),
    Text("The river runs past the old mill before it reaches the sea."),
    Text("Gold is Au."),
]


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def decoder(request: Any) -> EditableModel:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("llama", tokenizer="unigram")


def sequence_to_sequence(kind: str) -> EditableModel:
    """A random T5 or BART, whose tokenizer ends texts with EOS as theirs do."""
    tokenizer = tiny_tokenizer("unigram", bos=kind == "bart", eos=True)
    tokenizer.pad_token = "<unk>"
    ids = {"pad_token_id": 0, "eos_token_id": 2, "vocab_size": len(tokenizer)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        if kind == "t5":
            made: Any = T5ForConditionalGeneration(
                T5Config(
                    d_model=32,
                    d_ff=64,
                    d_kv=8,
                    num_layers=2,
                    num_heads=4,
                    decoder_start_token_id=0,
                    **ids,
                )
            )
            inside, down = "layer.2.DenseReluDense", "layer.2.DenseReluDense.wo"
            decoder, norm = "decoder", "decoder.final_layer_norm"
        else:
            made = BartForConditionalGeneration(
                BartConfig(
                    d_model=32,
                    encoder_layers=2,
                    decoder_layers=2,
                    encoder_attention_heads=4,
                    decoder_attention_heads=4,
                    encoder_ffn_dim=64,
                    decoder_ffn_dim=64,
                    max_position_embeddings=64,
                    bos_token_id=1,
                    decoder_start_token_id=2,
                    forced_eos_token_id=None,
                    **ids,
                )
            )
            inside, down = "fc1", "fc2"
            decoder, norm = "model.decoder", "model.decoder.layernorm_embedding"
        for parameter in made.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
    blocks = f"{decoder}.{'block' if kind == 't5' else 'layers'}.{{}}"
    family = Family(
        name=kind,
        model_types=(kind,),
        blocks=blocks,
        attentions=blocks,
        mlps=f"{blocks}.{inside}",
        mlp_downs=f"{blocks}.{down}",
        embedding="shared" if kind == "t5" else "model.shared",
        final_norm=norm,
        body=decoder,
        is_encoder_decoder=True,
    )
    return EditableModel.wrap(made, tokenizer, name=kind, families=(family,))


@pytest.fixture(scope="module", params=["t5", "bart"])
def seq2seq(request: Any) -> EditableModel:
    return sequence_to_sequence(request.param)


def test_forced_replies_equal_plain_forwards(decoder: EditableModel) -> None:
    replies = answer(decoder, FORCED, rows=3)
    for ask in FORCED:
        reply = replies.forced(ask.prompt, ask.target)
        ids = decoder.tokenizer(join(ask.prompt, ask.target), return_tensors="pt").input_ids
        with torch.no_grad():
            logits = decoder.model(ids).logits[0]
        n = len(reply.target)
        assert ids[0, -n:].tolist() == list(reply.target)
        assert logits[-n - 1 : -1].argmax(-1).tolist() == list(reply.predicted)
        plain = torch.nn.functional.cross_entropy(logits[-n - 1 : -1], ids[0, -n:])
        assert reply.mean_nll == pytest.approx(float(plain), abs=1e-5)


def test_neither_batch_nor_padding_side_changes_a_reply(decoder: EditableModel) -> None:
    alone = answer(decoder, ASKS, rows=1)
    for rows, side in ((2, "left"), (7, "right"), (64, "left")):
        together = answer(decoder, ASKS, rows=rows, side=side)  # type: ignore[arg-type]  # a literal
        check_close(together, alone)


def check_close(left: Replies, right: Replies) -> None:
    assert list(left) == list(right)
    for ask in left:
        a, b = to_plain(left[ask]), to_plain(right[ask])
        assert a.pop("nll", ()) == pytest.approx(b.pop("nll", ()), abs=1e-4)
        assert a == b, ask


def test_an_encoder_decoder_is_scored_with_its_target_shifted_right(
    seq2seq: EditableModel,
) -> None:
    """By transformers' own loss, which shifts the labels itself."""
    asks = [Forced(prompt, "the old mill") for prompt in PROMPTS]
    replies = answer(seq2seq, asks, rows=3)
    for ask in asks:
        reply = replies.forced(ask.prompt, ask.target)
        source = seq2seq.tokenizer(ask.prompt.rstrip(), return_tensors="pt").input_ids
        labels = seq2seq.tokenizer(ask.target, return_tensors="pt").input_ids[:, :-1]  # no EOS
        with torch.no_grad():
            out = seq2seq.model(input_ids=source, labels=labels)
        n = len(reply.target)
        assert labels[0, -n:].tolist() == list(reply.target)
        chances = out.logits[0].log_softmax(-1).gather(1, labels[0, :, None])[-n:, 0]
        assert list(reply.nll) == pytest.approx((-chances).tolist(), abs=1e-4)
        assert out.logits[0, -n:].argmax(-1).tolist() == list(reply.predicted)
        if n == labels.shape[1]:
            assert reply.mean_nll == pytest.approx(float(out.loss), abs=1e-4)


def test_an_encoder_decoder_generates_what_transformers_does(seq2seq: EditableModel) -> None:
    replies = answer(seq2seq, [Greedy(prompt, 8) for prompt in PROMPTS], rows=3)
    for prompt in PROMPTS:
        source = seq2seq.tokenizer(prompt.rstrip(), return_tensors="pt")
        ids = seq2seq.model.generate(
            input_ids=source.input_ids,
            attention_mask=source.attention_mask,
            max_new_tokens=8,
            do_sample=False,
            num_beams=1,
        )
        text = seq2seq.tokenizer.decode(ids[0], skip_special_tokens=True)
        assert replies.text(Greedy(prompt, 8)) == cut(text)


def test_a_texts_first_token_is_not_scored(decoder: EditableModel) -> None:
    ask = Text("The chemical symbol of gold is Au.")
    ids = decoder.tokenizer(ask.text, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = decoder.model(ids, labels=ids).loss  # the mean over all tokens but the first
    scores = answer(decoder, [ask]).scores(ask)
    assert len(scores.nll) == ids.shape[1] - 1
    assert scores.mean_nll == pytest.approx(float(loss), abs=1e-5)


def test_a_text_is_cut_to_the_context_and_to_what_was_asked(decoder: EditableModel) -> None:
    long = Text("gold " * 500)
    few = Text("gold " * 500, max_tokens=5)
    replies = answer(decoder, [long, few, Text("")])
    assert len(replies.scores(long).nll) == 127
    assert len(replies.scores(few).nll) == 4
    assert replies.scores(Text("")).nll == ()


def test_greedy_texts_equal_generation_one_by_one(decoder: EditableModel) -> None:
    asks = [Greedy(prompt, 12) for prompt in PROMPTS]
    replies = answer(decoder, asks, rows=3)
    for ask in asks:
        plain = decoder.generate([ask.prompt], max_new_tokens=12)[0]
        assert replies.text(ask) == cut(plain)


@pytest.mark.parametrize(
    ("text", "answers", "stopped"),
    [
        ("Paris", (), False),
        ("Paris.", (), False),  # "Paris.5" may come
        ("Paris. ", (), True),
        ("Paris\n", (), True),
        ("3.5", (), False),
        ("St. ", (), True),
        ("St. ", ("St. Louis",), False),
        ("St. Louis. ", ("St. Louis",), True),
        ("H. ", (), False),
        ("\n\n", (), False),
        ("", (), False),
    ],
)
def test_generation_goes_on_until_the_cut_is_certain(
    text: str, answers: tuple[str, ...], stopped: bool
) -> None:
    assert has_stopped(text, answers) is stopped


@pytest.mark.parametrize("ending", ["", "x", ". X", "\n", " Louis. It", "5"])
def test_what_comes_after_a_certain_stop_changes_nothing(ending: str) -> None:
    for text in ("Paris. ", "Paris\n", " Rome! ", "St. Louis. ", "a. b. "):
        for answers in ((), ("St. Louis",)):
            if has_stopped(text, answers):
                assert cut(text + ending, answers) == cut(text, answers)


@pytest.fixture
def batches(model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and columns of every batch the model reads from its beginning."""
    seen: list[tuple[int, int]] = []
    forward = model.model.forward

    def recorded(input_ids: torch.Tensor, *args: Any, **more: Any) -> Any:
        if more.get("past_key_values") is None:
            seen.append(tuple(input_ids.shape))  # type: ignore[arg-type]  # two sides
        return forward(input_ids, *args, **more)

    monkeypatch.setattr(model.model, "forward", recorded)
    return seen


@pytest.mark.parametrize("side", ["left", "right"])
def test_equal_asks_are_answered_once(
    model: EditableModel, batches: list[tuple[int, int]], side: Any
) -> None:
    answer(model, [*FORCED, *FORCED], side=side)
    assert [rows for rows, _ in batches] == [len(FORCED)]


def test_a_prompt_is_read_once_for_all_that_is_asked_about_it(
    model: EditableModel, batches: list[tuple[int, int]]
) -> None:
    asks = [
        Forced(PROMPTS[0], "Oslo"),
        Forced(PROMPTS[0], "Lima, of course"),
        Greedy(PROMPTS[0], 6),
        Sampled(PROMPTS[0], length=20),
        Forced(PROMPTS[2], "Au"),
    ]
    answer(model, asks)
    assert [rows for rows, _ in batches] == [2]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_holds_no_more_tokens_than_allowed(
    model: EditableModel, batches: list[tuple[int, int]], side: Any
) -> None:
    answer(model, [Forced("gold " * n, "Au") for n in range(1, 20)], tokens=60, side=side)
    assert len(batches) > 3
    assert max(rows * columns for rows, columns in batches) <= 60


def test_reading_prompts_once_equals_reading_each_row_whole(decoder: EditableModel) -> None:
    asks = [Forced(p, t) for p in PROMPTS for t in ("Oslo", "the old mill", "Lima, of course")]
    check_close(answer(decoder, asks, side="left"), answer(decoder, asks, side="right", rows=1))


def test_sampling_depends_on_its_seed_and_on_nothing_else(model: EditableModel) -> None:
    asks = [Sampled(prompt, length=20, seed=1) for prompt in PROMPTS]
    state = torch.get_rng_state()
    together = answer(model, asks)
    assert torch.equal(torch.get_rng_state(), state)
    assert [together.text(ask) for ask in asks] == [
        answer(model, [ask]).text(ask) for ask in reversed(asks)
    ][::-1]
    others = [Sampled(prompt, length=20, seed=2) for prompt in PROMPTS]
    replies = answer(model, others)
    assert [replies.text(ask) for ask in others] != [together.text(ask) for ask in asks]


def test_a_sampled_text_has_the_length_asked_for_with_its_prompt(model: EditableModel) -> None:
    ask = Sampled(PROMPTS[0], length=30, top_k=50)
    text = answer(model, [ask]).text(ask)
    # Tokens that spell nothing, and pieces that meet, may make the count differ a little.
    assert len(model.encode(ask.prompt + text)) == pytest.approx(30, abs=4)


def test_progress_is_told_of_every_ask(model: EditableModel) -> None:
    seen: list[Any] = []

    class Recorder:
        def start(self, label: str, total: int | None) -> None:
            seen.append(total)

        def advance(self, steps: int = 1, note: str = "") -> None:
            seen.append(1)

        def finish(self) -> None:
            seen.append("end")

    answer(model, ASKS, progress=Recorder())
    assert seen == [len(ASKS), *[1] * len(ASKS), "end"]


def test_what_cannot_be_asked_is_refused(model: EditableModel, seq2seq: EditableModel) -> None:
    with pytest.raises(EmptyTargetError):
        answer(model, [Forced("Gold is", " ")])
    with pytest.raises(EmptyTargetError):
        answer(seq2seq, [Forced("Gold is", " ")])
    with pytest.raises(PromptTooLongError):
        answer(model, [Forced("gold " * 500, "Au")])
    with pytest.raises(PromptTooLongError):
        answer(model, [Greedy("gold " * 500, 3)])
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        answer(seq2seq, [Text("Gold is Au.")])


# -- the cache ------------------------------------------------------------------------------------


def test_known_replies_are_not_asked_again(model: EditableModel, monkeypatch: Any) -> None:
    cache = ReplyCache()
    first = answer(model, ASKS, cache=cache)
    monkeypatch.setattr(model.model, "forward", None)
    assert dict(answer(model, ASKS, cache=cache)) == dict(first)


def test_replies_outlive_the_process_exactly(model: EditableModel, tmp_path: Path) -> None:
    first = answer(model, ASKS, cache=ReplyCache(tmp_path / "cache"))
    shelf = ReplyCache(tmp_path / "cache").shelf(model)
    assert shelf is not None
    assert {ask: shelf[ask.digest] for ask in ASKS} == dict(first)


def test_a_line_cut_short_by_a_crash_costs_one_reply(model: EditableModel, tmp_path: Path) -> None:
    answer(model, FORCED, cache=ReplyCache(tmp_path))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    shelf = ReplyCache(tmp_path).shelf(model)
    assert shelf is not None
    assert len(shelf) == len(FORCED) - 1
    check_close(answer(model, ASKS, cache=ReplyCache(tmp_path)), answer(model, ASKS))
    again = ReplyCache(tmp_path).shelf(model)
    assert again is not None
    assert len(again) == len(ASKS)


def test_a_cache_of_something_else_is_named(model: EditableModel, tmp_path: Path) -> None:
    answer(model, FORCED[:1], cache=ReplyCache(tmp_path))
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps({"ask": "x", "reply": "Riddle"}))
    with pytest.raises(InvalidParameterError, match="no reply"):
        ReplyCache(tmp_path).shelf(model)


def test_an_edited_model_has_another_fingerprint_and_its_own_again(model: EditableModel) -> None:
    base = model_fingerprint(model)
    with apply_patch(model, random_patch(model), mode="merge"):
        assert model_fingerprint(model) != base
    assert model_fingerprint(model) == base
    assert model_fingerprint(tiny_model("llama", tokenizer="unigram", seed=1)) != base


def test_an_overlaid_model_is_not_cached(model: EditableModel) -> None:
    cache = ReplyCache()
    base = answer(model, FORCED, cache=cache)
    with apply_patch(model, random_patch(model, scale=5.0), mode="overlay"):
        assert cache.shelf(model) is None
        assert dict(answer(model, FORCED, cache=cache)) != dict(base)


def test_asks_are_told_apart_by_kind_and_every_field() -> None:
    asks = [
        Forced("a", "b"),
        Forced("ab", ""),
        Greedy("a", 1),
        Greedy("a", 2),
        Greedy("a", 1, ("b",)),
        Sampled("a"),
        Sampled("a", seed=1),
        Text("a"),
        Text("a", 1),
    ]
    assert len({ask.digest for ask in asks}) == len(set(asks)) == len(asks)
    assert Forced("a", "b").digest == Forced("a", "b").digest


def test_a_reply_is_the_same_after_json(model: EditableModel) -> None:
    for reply in answer(model, ASKS).values():
        assert from_plain(json.loads(json.dumps(to_plain(reply)))) == reply
