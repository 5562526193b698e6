"""What `trace_request` promises about its result, its arguments and the model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from editkit_core.errors import (
    EmptyTargetError,
    InvalidParameterError,
    InvalidRequestError,
    NonFiniteEditError,
    PromptTooLongError,
    UnsupportedModelError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.numerics.tracing import trace_request
from editkit_core.numerics.tracing_result import TraceResult
from editkit_core.testing.models import tiny_model
from editkit_core.types import EditRequest

REQUEST = EditRequest(
    prompt="The capital of {} is", subject="old Fiji town", target_new="Rome", target_true="Suva"
)


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("gpt2", seed=3)


@pytest.fixture(scope="module")
def result(model: EditableModel) -> TraceResult:
    return trace_request(model, REQUEST, samples=3, noise=1.0, seed=4)


class Steps:
    """Counts what is reported."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0
        self.finished = False

    def start(self, label: str, total: int | None) -> None:
        self.total = total

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps

    def finish(self) -> None:
        self.finished = True


def test_effects_have_a_row_a_token_and_a_column_a_layer(result: TraceResult) -> None:
    assert result.kinds == ("hidden", "mlp", "attention")
    shape = (len(result.tokens), len(result.layers))
    assert {array.shape for array in result.effects.values()} == {shape}
    assert result.layers == (0, 1, 2)


def test_tokens_spell_the_prompt_and_the_span_the_subject(result: TraceResult) -> None:
    start, end = result.subject
    assert without_spaces(result.tokens) == "ThecapitalofoldFijitownis"
    assert without_spaces(result.tokens[start:end]) == "oldFijitown"


def without_spaces(tokens: tuple[str, ...]) -> str:
    return "".join(tokens).replace(" ", "")


def test_total_effect_is_the_drop_of_the_probability(result: TraceResult) -> None:
    assert result.total_effect == result.p_clean - result.p_corrupted
    assert result.effects["hidden"][-1, -1] == pytest.approx(result.total_effect, rel=1e-4)


def test_the_clean_probability_is_the_models_own(model: EditableModel, result: TraceResult) -> None:
    ids = torch.tensor([model.encode(REQUEST.text).ids])
    with torch.no_grad():
        p = torch.softmax(model.model(ids).logits[0, -1].double(), 0)
    assert result.answer_id == int(p.argmax())
    assert result.p_clean == pytest.approx(float(p.max()), rel=1e-5)


def test_a_given_answer_is_traced_by_its_first_token(model: EditableModel) -> None:
    given = trace_request(model, REQUEST, samples=1, noise=1.0, kinds=["mlp"], answer="Suva")
    pair = model.encode_pair(REQUEST.text, "Suva")
    assert given.answer_id == pair.target_ids[0]
    assert "Suva".startswith(given.answer.strip())


def test_white_space_at_the_end_of_the_prompt_changes_nothing(
    model: EditableModel, result: TraceResult
) -> None:
    spaced = EditRequest(prompt="The capital of {} is ", subject=REQUEST.subject, target_new="Rome")
    same = trace_request(model, spaced, samples=3, noise=1.0, seed=4)
    assert same.to_dict() == result.to_dict()


def test_a_bos_token_is_named_and_not_disturbed() -> None:
    with_bos = tiny_model("llama", tokenizer="unigram", seed=3)
    traced = trace_request(with_bos, REQUEST, samples=1, noise=1.0, kinds=["mlp"])
    assert traced.tokens[0] == "<s>"
    assert traced.subject[0] > 0
    assert len(traced.tokens) == len(with_bos.encode(REQUEST.text).ids)


def test_the_same_seed_gives_the_same_trace(model: EditableModel, result: TraceResult) -> None:
    again = trace_request(model, REQUEST, samples=3, noise=1.0, seed=4)
    assert again.to_dict() == result.to_dict()


def test_another_seed_gives_other_noise(model: EditableModel, result: TraceResult) -> None:
    other = trace_request(model, REQUEST, samples=3, noise=1.0, seed=5)
    assert other.p_corrupted != result.p_corrupted
    assert other.p_clean == result.p_clean


@pytest.mark.parametrize("batch_cells", [1, 5, 1000])
def test_the_batch_size_changes_nothing(
    model: EditableModel, result: TraceResult, batch_cells: int
) -> None:
    other = trace_request(model, REQUEST, samples=3, noise=1.0, seed=4, batch_cells=batch_cells)
    for kind in result.kinds:
        np.testing.assert_allclose(other.effects[kind], result.effects[kind], atol=1e-7)


def test_tracing_leaves_the_model_as_it_was(model: EditableModel) -> None:
    before = model.state_digest()
    trace_request(model, REQUEST, samples=1)
    assert model.state_digest() == before
    assert not model.model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())


def test_tracing_leaves_the_random_state_as_it_was(model: EditableModel) -> None:
    before = torch.get_rng_state()
    trace_request(model, REQUEST, samples=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_noise_is_three_sigma_of_the_subjects_embeddings(model: EditableModel) -> None:
    start, end = trace_request(model, REQUEST, samples=1, kinds=["mlp"]).subject
    ids = torch.tensor(model.encode(REQUEST.text).ids[start:end])
    entries = model.model.get_input_embeddings().weight[ids].numpy().astype(np.float64)
    traced = trace_request(model, REQUEST, samples=1, kinds=["mlp"])
    assert traced.noise == pytest.approx(3 * entries.std(ddof=1))


def test_the_noise_can_come_from_a_set_of_facts(model: EditableModel) -> None:
    other = EditRequest(prompt="{} plays the", subject="Mary", target_new="piano")
    alone = trace_request(model, REQUEST, samples=1, kinds=["mlp"])
    both = trace_request(model, REQUEST, samples=1, kinds=["mlp"], noise_over=[REQUEST, other])
    assert both.noise != alone.noise


def test_every_cell_is_reported(model: EditableModel) -> None:
    steps = Steps()
    traced = trace_request(model, REQUEST, samples=1, batch_cells=4, progress=steps)
    assert steps.done == steps.total == 3 * 3 * (len(traced.tokens) - traced.subject[0])
    assert steps.finished


def test_the_result_goes_through_json(result: TraceResult) -> None:
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["tokens"] == list(result.tokens)
    assert written["total_effect"] == result.total_effect
    np.testing.assert_array_equal(written["effects"]["mlp"], result.effects["mlp"])


def test_effects_cannot_be_written_to(result: TraceResult) -> None:
    with pytest.raises(ValueError, match="read-only"):
        result.effects["mlp"][0, 0] = 1.0


def made(effects: np.ndarray) -> TraceResult:
    return TraceResult(
        model="m",
        prompt="a b c d",
        tokens=("a", " b", " c", " d"),
        subject=(1, 3),
        answer=" e",
        answer_id=0,
        p_clean=0.5,
        p_corrupted=0.1,
        effects={"mlp": effects},
        noise=0.1,
        samples=2,
        window=1,
        seed=0,
    )


def test_the_best_layer_has_the_largest_effect_at_the_token() -> None:
    effects = np.zeros((4, 5))
    effects[2, 3] = 0.2
    effects[1, 1] = effects[3, 4] = 0.9
    assert made(effects).best_layer() == 3
    assert made(effects).best_layer(token="subject_first") == 1
    assert made(effects).best_layer(token="subject_first_after_last") == 4
    assert made(effects).best_layer("mlp", "last") == 4


def test_of_equal_layers_the_lowest_is_best() -> None:
    assert made(np.zeros((4, 5))).best_layer() == 0


def test_the_last_layer_is_best_only_at_the_last_token() -> None:
    effects = -np.ones((4, 5))
    effects[:, 4] = 0.0
    assert made(effects).best_layer(token="subject_last") == 0
    assert made(effects).best_layer(token="last") == 4
    assert made(np.zeros((4, 1))).best_layer() == 0


def test_a_kind_that_was_not_traced_is_refused() -> None:
    with pytest.raises(
        InvalidParameterError, match="'hidden' was not traced; this trace holds mlp"
    ):
        made(np.zeros((4, 5))).best_layer("hidden")


def test_an_unknown_token_position_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="Did you mean 'subject_last'"):
        made(np.zeros((4, 5))).best_layer("mlp", "subject_lst")  # type: ignore[arg-type] # the point


def test_effects_of_another_length_than_the_prompt_are_refused() -> None:
    with pytest.raises(InvalidParameterError, match="4 tokens"):
        made(np.zeros((3, 5)))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("samples", 0),
        ("window", 0),
        ("batch_cells", 0),
        ("noise", -0.1),
        ("noise", float("nan")),
        ("window_share", 0.0),
        ("window_share", 1.5),
        ("seed", -1),
    ],
)
def test_a_number_out_of_range_is_named(model: EditableModel, argument: str, value: float) -> None:
    with pytest.raises(InvalidParameterError, match=argument):
        trace_request(model, REQUEST, **{argument: value})


def test_an_unknown_kind_is_refused(model: EditableModel) -> None:
    with pytest.raises(InvalidParameterError, match="Did you mean 'attention'"):
        trace_request(model, REQUEST, kinds=["atention"])  # type: ignore[list-item] # the point


def test_tracing_nothing_is_refused(model: EditableModel) -> None:
    with pytest.raises(InvalidParameterError, match="no kind to trace"):
        trace_request(model, REQUEST, kinds=())


def test_an_empty_answer_is_refused(model: EditableModel) -> None:
    with pytest.raises(EmptyTargetError):
        trace_request(model, REQUEST, answer=" ")


def test_an_answer_in_one_token_with_the_subject_is_refused() -> None:
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    trainer = BpeTrainer(special_tokens=["<unk>"], initial_alphabet=list("of "))
    tokenizer.train_from_iterator(["Mary Rome"] * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    request = EditRequest(prompt="of {}", subject="Mary", target_new="Rome")
    with pytest.raises(InvalidRequestError, match="in one token"):
        trace_request(tiny_model("gpt2", tokenizer=fast), request, answer="Rome")


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(PromptTooLongError, match="at most 4"):
        trace_request(tiny_model("gpt2", max_positions=4), REQUEST)


def test_logits_that_are_not_finite_are_named() -> None:
    broken = tiny_model("gpt2", seed=3)
    broken.parameter("transformer.ln_f.weight").fill_(float("nan"))
    with pytest.raises(NonFiniteEditError, match="not finite"):
        trace_request(broken, REQUEST, samples=1)


def test_a_half_precision_model_is_traced() -> None:
    half = tiny_model("llama", seed=3)
    half.model.to(torch.bfloat16)
    full = trace_request(tiny_model("llama", seed=3), REQUEST, samples=2, noise=1.0)
    traced = trace_request(half, REQUEST, samples=2, noise=1.0, answer=None)
    assert traced.p_clean == pytest.approx(full.p_clean, rel=0.2)


def test_an_encoder_decoder_is_refused(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model), "is_encoder_decoder", True)
    with pytest.raises(UnsupportedModelError, match="decoders only"):
        trace_request(model, REQUEST)
