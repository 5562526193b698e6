"""Encoder-decoders in the model wrapper: places, text, generation, loading, weight patches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import saved, state
from transformers import ByT5Tokenizer, GenerationConfig, T5Tokenizer

from editkit_core.api import Editor
from editkit_core.errors import (
    BaseMismatchError,
    InvalidRequestError,
    LayerOutOfRangeError,
    TokenizerWithoutOffsetsError,
    UnsupportedModelError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.models.families import Stack
from editkit_core.models.pairs import pair_batch, pair_logits
from editkit_core.models.text import encode, pad_batch, token_span
from editkit_core.models.trace import record, replace_output
from editkit_core.numerics.corpus import Corpus
from editkit_core.numerics.moments import collect_moments
from editkit_core.patch import apply_patch, revert_folder, write_patched
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.testing import TINY_ENCODER_DECODERS, tiny_model, tiny_tokenizer
from editkit_core.testing.patches import random_patch
from editkit_core.types import EditRequest, Probe

PROMPTS = [
    "The capital of Norway is",
    "Peru",
    "What language do people speak in Brazil? They speak",
    "Marie Curie was",
]
NORWAY = EditRequest(
    prompt="The capital of {} is", subject="Norway", target_new="Lima", target_true="Oslo",
    paraphrases=("Which town is the capital of Norway?",),
    locality={"neighborhood": (Probe(prompt="The capital of Peru is", answers=("Lima",)),)},
)  # fmt: skip
NAMES = sorted(TINY_ENCODER_DECODERS)
STACKS: tuple[Stack, ...] = ("encoder", "decoder")


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> EditableModel:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def t5() -> EditableModel:
    return tiny_model("t5")


def t5_tokenizer() -> T5Tokenizer:
    """A tokenizer of T5's own class, with its specials first and its sentinels last."""
    trained = json.loads(tiny_tokenizer("unigram").backend_tokenizer.to_str())["model"]["vocab"]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in range(9, -1, -1)]
    pieces = [(piece, worth) for piece, worth in trained[3:]]
    return T5Tokenizer(vocab=[*specials, *pieces, *sentinels], extra_ids=10)


# -- facts and places -----------------------------------------------------------------------------


def test_the_encoder_has_layers_of_its_own(model: EditableModel) -> None:
    assert (model.n_encoder_layers, model.n_layers) == (4, 3)
    assert "layers=4+3" in repr(model)
    assert tiny_model("llama").n_encoder_layers == 0


def test_widths_come_from_the_weights(model: EditableModel) -> None:
    assert (model.d_model, model.vocab) == (32, len(model.tokenizer))
    assert model.max_positions is None
    assert (model.dtype, str(model.device)) == (torch.float32, "cpu")


@pytest.mark.parametrize("stack", STACKS)
def test_a_sites_weight_is_seen_as_out_by_in(model: EditableModel, stack: Stack) -> None:
    site = model.site(2, stack=stack)
    module = model.module(site.module)
    assert model.weight(site).shape == (32, 128)
    keys = torch.randn(5, 128)
    torch.testing.assert_close(module(keys), keys @ model.weight(site).T)


@pytest.mark.parametrize(("stack", "layers"), [("encoder", 4), ("decoder", 3)])
def test_a_layer_that_a_stack_does_not_have_is_refused(
    model: EditableModel, stack: Stack, layers: int
) -> None:
    model.site(layers - 1, stack=stack)
    with pytest.raises(LayerOutOfRangeError, match=f"{layers} in its {stack}.*0 to {layers - 1}"):
        model.site(layers, stack=stack)


def test_a_decoder_has_no_encoder_site() -> None:
    with pytest.raises(UnsupportedModelError, match="has no encoder"):
        tiny_model("gpt2").site(0, stack="encoder")


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gpt2", ("c_fc", "c_proj")),
        ("gpt_neo", ("c_fc", "c_proj")),
        ("gptj", ("fc_in", "fc_out")),
        ("llama", ("gate_proj", "up_proj", "down_proj")),
        ("qwen3", ("gate_proj", "up_proj", "down_proj")),
        ("t5", ("wi", "wo")),
        ("t5_gated", ("wi_0", "wi_1", "wo")),
    ],
)
def test_a_feed_forwards_projections_end_with_the_down_projection(
    family: str, names: tuple[str, ...]
) -> None:
    model = tiny_model(family)
    for stack in model.family.stacks:
        mlp = model.family.mlp(1, stack)
        assert model.mlp_projections(1, stack) == tuple(f"{mlp}.{name}" for name in names)


def test_activations_of_both_stacks_are_recorded_and_replaced(model: EditableModel) -> None:
    batch = pair_batch(model, [("Peru", "Lima")])
    family = model.family
    places = [f(1, stack) for stack in STACKS for f in (family.block, family.attention, family.mlp)]
    with record(model.model, places) as states:
        before = pair_logits(model, batch)
    source, answer = batch.inputs["input_ids"].shape[1], batch.labels.shape[1]
    assert [states[place].shape[1] for place in places] == [source] * 3 + [answer] * 3
    for place in places:
        with replace_output(model.model, place, lambda hidden: hidden + 1):
            assert not torch.equal(pair_logits(model, batch), before)


# -- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "index"), [("subject_first", 4), ("subject_last", 7), ("subject_first_after_last", 8)]
)
def test_a_subjects_tokens_are_found_in_what_the_encoder_reads(
    t5: EditableModel, token: str, index: int
) -> None:
    pieces = t5.tokenizer.convert_ids_to_tokens(t5.encode(NORWAY.text).ids)
    assert pieces == ["▁The", "▁capital", "▁of", "▁", "N", "or", "wa", "y", "▁is"]
    assert t5.subject_position(NORWAY, token) == index  # type: ignore[arg-type]  # a literal
    assert t5.subject_position(NORWAY, token, target="Lima") == index  # type: ignore[arg-type]


def test_the_last_token_is_the_encoders_last_which_is_its_eos(model: EditableModel) -> None:
    assert model.subject_position(NORWAY, "last") == 9
    batch = pair_batch(model, [(NORWAY.text, "Lima")])
    assert batch.queries.tolist() == [9]
    ends = EditRequest(prompt="Who governs {}", subject="Norway", target_new="Lima")
    after = model.subject_position(ends, "subject_first_after_last")
    assert after == model.subject_position(ends, "last")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The capital of Norway is", ["The", "capital", "Norway", "is"]),
        ("  Marie  Curie was \n born", ["Marie", "Curie", "born"]),
        ("naïve 東京 Tokyo ﬁne", ["naïve", "東京", "Tokyo", "ﬁne"]),
        ("<extra_id_0> walks in Oslo", ["walks", "Oslo"]),
    ],
)
def test_t5s_own_tokenizer_class_maps_words_to_their_tokens(text: str, words: list[str]) -> None:
    """White space is dropped and a lone word-start piece stands for the character behind it."""
    encoded = encode(t5_tokenizer(), text)
    for word in words:
        start = text.index(word)
        span = token_span(encoded, start, start + len(word))
        covered = {i for a, b in encoded.offsets[span.start : span.end] for i in range(a, b)}
        assert covered == set(range(start, start + len(word)))


def test_a_tokenizer_of_bytes_is_refused_for_its_missing_offsets() -> None:
    model = tiny_model("t5").model
    with pytest.raises(TokenizerWithoutOffsetsError, match="ByT5Tokenizer"):
        EditableModel.wrap(model, ByT5Tokenizer())


# -- running --------------------------------------------------------------------------------------


def test_logits_of_one_text_are_refused_with_what_to_use(model: EditableModel) -> None:
    with pytest.raises(UnsupportedModelError, match="pair_logits"):
        model.logits(pad_batch([[5, 6]], model.pad_id))


def by_transformers(model: EditableModel, prompt: str, n: int) -> str:
    """The answer as its own ``generate`` gives it, joined to the prompt by a space."""
    inputs = model.tokenizer(prompt, return_tensors="pt")
    out = model.model.generate(**inputs, max_new_tokens=n, do_sample=False, num_beams=1)
    answer = model.tokenizer.decode(out[0], skip_special_tokens=True)
    return f" {answer}" if answer else ""


def test_greedy_answers_are_transformers_own_together_and_one_by_one(model: EditableModel) -> None:
    expected = [by_transformers(model, prompt, 12) for prompt in PROMPTS]
    assert model.generate(PROMPTS, max_new_tokens=12) == expected
    assert [model.generate([prompt], max_new_tokens=12)[0] for prompt in PROMPTS] == expected
    assert model.generate(PROMPTS, max_new_tokens=12, batch_size=3) == expected


def test_an_answer_ends_at_eos() -> None:
    """The end of the text is made the likeliest token from the third on."""
    model = tiny_model("t5")
    whole = model.generate(PROMPTS[:1], max_new_tokens=6)
    steps = []

    def end(_: object, __: object, logits: torch.Tensor) -> torch.Tensor:
        steps.append(logits.shape[1])
        logits = logits.clone()
        if len(steps) > 2:
            logits[..., model.tokenizer.eos_token_id] = 1e4
        return logits

    handle = model.module("lm_head").register_forward_hook(end)
    try:
        (text,) = model.generate(PROMPTS[:1], max_new_tokens=6)
    finally:
        handle.remove()
    assert steps == [1, 1, 1]  # one token a pass: the cache holds the rest
    assert whole[0].startswith(text)
    assert text == model.generate(PROMPTS[:1], max_new_tokens=2)[0]


def test_an_answer_stops_before_the_text_it_is_told_to(t5: EditableModel) -> None:
    (whole,) = t5.generate(PROMPTS[:1], max_new_tokens=10)
    stop = whole[4:6]
    assert t5.generate(PROMPTS[:1], max_new_tokens=10, stop_at=stop) == [whole.partition(stop)[0]]


def test_a_prompt_that_ends_in_a_space_gets_an_answer_without_one(t5: EditableModel) -> None:
    (plain,) = t5.generate(["Peru"], max_new_tokens=6)
    assert t5.generate(["Peru "], max_new_tokens=6) == [plain.lstrip(" ")]


def test_answers_are_sampled_by_their_seed(model: EditableModel) -> None:
    before = torch.get_rng_state()
    options = {"sample": True, "top_k": 20, "max_new_tokens": 8}
    first = model.generate(PROMPTS, seed=1, **options)  # type: ignore[arg-type]  # its options
    assert model.generate(PROMPTS, seed=1, **options) == first  # type: ignore[arg-type]
    assert model.generate(PROMPTS, seed=2, **options) != first  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_generation_settings_of_the_checkpoint_are_not_read(t5: EditableModel) -> None:
    plain = t5.generate(PROMPTS, max_new_tokens=6)
    model = tiny_model("t5")
    model.model.generation_config = GenerationConfig(
        do_sample=True, num_beams=3, max_length=2, forced_bos_token_id=9, decoder_start_token_id=3
    )
    assert model.generate(PROMPTS, max_new_tokens=6) == plain


def test_an_answer_ends_where_the_decoder_reads_no_more() -> None:
    model = tiny_model("t5")
    (text,) = model.generate(["Peru"], max_new_tokens=4)
    model.model.config.max_position_embeddings = 4
    assert model.generate(["Peru"], max_new_tokens=99) == [text]


def test_an_empty_prompt_is_answered_if_the_tokenizer_ends_it_else_refused() -> None:
    assert len(tiny_model("t5").generate([""], max_new_tokens=3)) == 1
    bare = tiny_model("t5", tokenizer=tiny_tokenizer("unigram", bos=False, pad=True))
    with pytest.raises(InvalidRequestError, match="no token"):
        bare.generate([""])


# -- loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_folder_loads_as_what_was_saved(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_model(name)
    model.model.to(dtype)
    folder = saved(tmp_path / "model", name, dtype, "5GB")
    loaded = EditableModel.from_pretrained(str(folder), dtype="auto")
    assert loaded.dtype == dtype
    assert loaded.state_digest() == model.state_digest()
    assert loaded.generate(PROMPTS, max_new_tokens=6) == model.generate(PROMPTS, max_new_tokens=6)


def test_a_head_of_its_own_is_not_tied_by_loading(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "t5_gated", torch.float32, "5GB")
    model = EditableModel.from_pretrained(str(folder))
    head, shared = model.parameter("lm_head.weight"), model.parameter("shared.weight")
    assert not torch.equal(head, shared)
    assert model.parameter("encoder.embed_tokens.weight") is shared


def test_a_tokenizer_of_t5s_own_class_survives_a_folder(tmp_path: Path) -> None:
    model = tiny_model("t5", tokenizer=t5_tokenizer())
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    loaded = EditableModel.from_pretrained(str(tmp_path))
    assert type(loaded.tokenizer) is T5Tokenizer
    for text in PROMPTS:
        assert loaded.encode(text) == model.encode(text)
    assert loaded.generate(PROMPTS[:2]) == model.generate(PROMPTS[:2])


# -- patches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("mode", ["merge", "overlay"])
@pytest.mark.parametrize("name", NAMES)
def test_a_weight_patch_changes_the_answers_and_is_taken_off_bit_for_bit(
    name: str, mode: str, stack: Stack
) -> None:
    model = tiny_model(name)
    batch = pair_batch(model, [(prompt, "Lima") for prompt in PROMPTS])
    digest, before = model.state_digest(), pair_logits(model, batch)
    patch = random_patch(model, stack=stack, rank=2)
    (entry,) = patch.entries
    site = entry.site
    u, v = torch.tensor(entry.u).double(), torch.tensor(entry.v).double()
    expected = model.weight(site).double() + u @ v
    keys = torch.randn(7, 128)
    with apply_patch(model, patch, mode=mode):  # type: ignore[arg-type]  # a literal
        values = model.module(site.module)(keys)
        torch.testing.assert_close(values, (keys.double() @ expected.T).float())
        assert float((pair_logits(model, batch) - before).abs().max()) > 0.05
    assert model.state_digest() == digest
    assert torch.equal(pair_logits(model, batch), before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["5GB", "60KB"])
def test_a_folder_is_patched_and_reverted_file_by_file(
    name: str, dtype: torch.dtype, shard: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "base", name, dtype, shard)
    before = state(folder)
    model = EditableModel.from_pretrained(str(folder), dtype="auto")
    patches = [random_patch(model, stack=stack, seed=i) for i, stack in enumerate(STACKS)]
    for patch in patches:
        out = tmp_path / patch.id
        write_patched(folder, patch, out)
        written = EditableModel.from_pretrained(str(out), dtype="auto")
        with apply_patch(model, patch, mode="merge"):
            assert written.state_digest() == model.state_digest()
        revert_folder(out)
        assert state(out) == before


@pytest.mark.parametrize("mode", ["merge", "overlay"])
@pytest.mark.parametrize(
    ("dtype", "held"), [("bfloat16", torch.bfloat16), ("float16", torch.float32)]
)
def test_a_patch_of_the_file_fits_in_half_precision_where_transformers_keeps_wo_in_float32(
    dtype: str, held: torch.dtype, mode: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "base", "t5", torch.float32, "5GB")
    patch = random_patch(EditableModel.from_pretrained(str(folder)), stack="encoder")
    model = EditableModel.from_pretrained(str(folder), dtype=dtype)
    assert model.weight(model.site(1, stack="encoder")).dtype == held
    batch = pair_batch(model, [("Peru", "Lima")])
    digest, before = model.state_digest(), pair_logits(model, batch)
    with apply_patch(model, patch, mode=mode):  # type: ignore[arg-type]  # a literal
        assert not torch.equal(pair_logits(model, batch), before)
    assert model.state_digest() == digest
    assert torch.equal(pair_logits(model, batch), before)


def test_a_patch_of_the_encoder_does_not_fit_the_decoders_fingerprint(model) -> None:
    encoder, decoder = (model.site(1, stack=stack).parameter for stack in STACKS)
    prints = base_fingerprint(model, [encoder, decoder]).tensors
    assert prints[encoder].sha256 != prints[decoder].sha256


def test_a_patch_for_a_decoder_model_is_refused_by_name(t5: EditableModel) -> None:
    with pytest.raises(BaseMismatchError, match=r"transformer\.h\.1\.mlp\.c_proj"):
        apply_patch(t5, random_patch(tiny_model("gpt2")))


# -- what does not apply --------------------------------------------------------------------------


def test_key_statistics_are_refused(t5: EditableModel) -> None:
    with pytest.raises(UnsupportedModelError, match="need none"):
        collect_moments(t5, t5.site(0), Corpus.of(["Peru"]))


def test_causal_tracing_is_refused(t5: EditableModel) -> None:
    with pytest.raises(UnsupportedModelError, match="Causal tracing reads decoders only"):
        Editor(t5).trace(NORWAY)


# -- the editor -----------------------------------------------------------------------------------


def test_an_editor_generates_with_a_patch_on_and_without(model: EditableModel) -> None:
    editor = Editor(model)
    before = editor.generate(NORWAY.text)
    patch = random_patch(model, stack="encoder", scale=3.0)
    with editor.applied(patch):
        assert editor.generate(NORWAY.text) != before
    assert editor.generate(NORWAY.text) == before


def test_an_editor_measures_a_patch_teacher_forced_and_by_generation(model) -> None:
    report = Editor(model).evaluate([NORWAY], random_patch(model, stack="encoder", scale=3.0))
    rows = {(row.metric, row.protocol) for row in report.rows}
    assert {("reliability", "tf_token"), ("reliability", "gen_em")} <= rows
    assert {metric for metric, _ in rows} >= {"reliability", "generalization", "locality"}
    plain = by_transformers(model, NORWAY.text, 40).strip()
    said = {row.text_before for row in report.rows if row.prompt == NORWAY.text and row.text_before}
    assert said
    assert all(plain.startswith(text) for text in said)
