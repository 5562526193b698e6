"""Every metric against models of known ability, and scorers that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Any

import attrs
import pytest
import torch

from editkit_core.metrics import engine
from editkit_core.metrics.ask import Ask, Forced, ForcedReply, Replies
from editkit_core.metrics.registry import load_metrics, metric_factories
from editkit_core.testing.oracles import (
    TOKENIZER_STYLES,
    OracleError,
    all_cases,
    check_metric,
    check_metrics,
    make_tokenizer,
    make_world,
    oracle_model,
    quick_cases,
)


def metrics(*names: str) -> Any:
    # The harness scores by itself, with an optional dependency: see tests/harness.
    return load_metrics(names or [name for name in metric_factories() if name != "harness"])


@pytest.mark.parametrize("case", quick_cases(), ids=str)
def test_every_metric_gives_exactly_what_each_model_deserves(case: Any) -> None:
    assert check_metrics(metrics(), cases=[case]) > 600


@pytest.mark.slow
@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_every_metric_is_exact_in_every_combination(case: Any) -> None:
    assert check_metrics(metrics(), cases=[case]) > 600


def test_the_quick_cases_hold_every_pair_of_values() -> None:
    def pairs(cases: Sequence[Any]) -> set[Any]:
        named = [sorted(attrs.asdict(case).items()) for case in cases]
        return {pair for items in named for pair in product(items, items)}

    assert pairs(quick_cases()) == pairs(all_cases())
    assert len(quick_cases()) < len(all_cases()) / 4


# -- wrong on purpose -----------------------------------------------------------------------------

Predict = Callable[[Any, Forced], tuple[Sequence[int], Sequence[int]]]


def wrong_scorer(predict: Predict) -> Any:
    """An engine whose teacher forcing is done by ``predict`` instead: (predicted, target)."""

    def answer(model: Any, asks: Iterable[Ask], **how: Any) -> Replies:
        replies = dict(engine.answer(model, asks, **how))
        for ask in replies:
            if isinstance(ask, Forced):
                predicted, target = predict(model, ask)
                nll = [0.0 if a == b else 9e3 for a, b in zip(predicted, target, strict=True)]
                replies[ask] = ForcedReply(tuple(predicted), tuple(target), tuple(nll))
        return Replies(replies)

    return answer


def run(model: Any, **inputs: Any) -> list[int]:
    made = {name: torch.tensor([ids]) for name, ids in inputs.items()}
    return [int(i) for i in model.model(**made).logits.argmax(-1)[0]]


def without_eos(model: Any, ids: Sequence[int]) -> list[int]:
    return list(ids[:-1]) if ids[-1] == model.tokenizer.eos_token_id else list(ids)


def right_decoder(model: Any, ask: Forced) -> tuple[Sequence[int], Sequence[int]]:
    """What a scorer should do, written down a second time."""
    prompt = without_eos(model, model.tokenizer(ask.prompt).input_ids)
    ids = without_eos(model, model.tokenizer(f"{ask.prompt} {ask.target}").input_ids)
    best = run(model, input_ids=ids)
    return best[len(prompt) - 1 : -1], ids[len(prompt) :]


def right_encoder_decoder(model: Any, ask: Forced) -> tuple[Sequence[int], Sequence[int]]:
    target = without_eos(model, model.tokenizer(ask.target).input_ids)
    start = model.model.config.decoder_start_token_id
    best = run(
        model,
        input_ids=list(model.tokenizer(ask.prompt).input_ids),
        decoder_input_ids=[start, *target[:-1]],
    )
    lead = int(target[0] == model.tokenizer.bos_token_id)
    return best[lead:], target[lead:]


def right(model: Any, ask: Forced) -> tuple[Sequence[int], Sequence[int]]:
    return (right_encoder_decoder if model.is_encoder_decoder else right_decoder)(model, ask)


def unshifted(model: Any, ask: Forced) -> tuple[Sequence[int], Sequence[int]]:
    """Gives the decoder the target itself, so that a copy of its input looks right."""
    if not model.is_encoder_decoder:
        return right(model, ask)
    target = without_eos(model, model.tokenizer(ask.target).input_ids)
    source = list(model.tokenizer(ask.prompt).input_ids)
    return run(model, input_ids=source, decoder_input_ids=target), target


def without_leading_space(model: Any, ask: Forced) -> tuple[Sequence[int], Sequence[int]]:
    """Tokenises the target alone and puts it behind the prompt."""
    if model.is_encoder_decoder:
        return right(model, ask)
    prompt = without_eos(model, model.tokenizer(ask.prompt).input_ids)
    target = model.tokenizer(ask.target, add_special_tokens=False).input_ids
    return run(model, input_ids=[*prompt, *target])[len(prompt) - 1 : -1], target


def counting_padding(model: Any, ask: Forced) -> tuple[Sequence[int], Sequence[int]]:
    """Scores a row padded by two, with the padding."""
    pad = model.tokenizer.pad_token_id
    if model.is_encoder_decoder:
        return right(model, ask)
    prompt = without_eos(model, model.tokenizer(ask.prompt).input_ids)
    ids = without_eos(model, model.tokenizer(f"{ask.prompt} {ask.target}").input_ids)
    mask = [1] * len(ids) + [0, 0]
    best = run(model, input_ids=[*ids, pad, pad], attention_mask=mask)
    return best[len(prompt) - 1 : -1], [*ids[len(prompt) :], pad, pad]


def one_too_early(model: Any, ask: Forced) -> tuple[Sequence[int], Sequence[int]]:
    """Compares with the position's own token in a decoder."""
    if model.is_encoder_decoder:
        return right(model, ask)
    prompt = without_eos(model, model.tokenizer(ask.prompt).input_ids)
    ids = without_eos(model, model.tokenizer(f"{ask.prompt} {ask.target}").input_ids)
    return run(model, input_ids=ids)[len(prompt) :], ids[len(prompt) :]


def without_bos(model: Any, ask: Forced) -> tuple[Sequence[int], Sequence[int]]:
    """Leaves out the special tokens that the model was trained with."""
    if model.is_encoder_decoder:
        return right(model, ask)
    prompt = model.tokenizer(ask.prompt, add_special_tokens=False).input_ids
    ids = model.tokenizer(f"{ask.prompt} {ask.target}", add_special_tokens=False).input_ids
    return run(model, input_ids=ids)[len(prompt) - 1 : -1], ids[len(prompt) :]


def test_a_second_right_scorer_passes() -> None:
    answer = wrong_scorer(right)
    for name in ("reliability", "locality", "efficacy_score", "neighborhood_magnitude"):
        assert check_metric(*metrics(name), answer=answer)


@pytest.mark.parametrize(
    "predict",
    [unshifted, without_leading_space, counting_padding, one_too_early, without_bos],
    ids=lambda predict: predict.__name__,
)
@pytest.mark.parametrize("name", ["reliability", "locality", "efficacy_magnitude"])
def test_a_wrong_scorer_is_caught(predict: Predict, name: str) -> None:
    with pytest.raises(OracleError, match=name):
        check_metric(*metrics(name), answer=wrong_scorer(predict))


def test_unshifted_labels_look_perfect_to_a_model_that_only_copies() -> None:
    world = make_world(3)
    tokenizer = make_tokenizer("unigram_eos", world.words)
    copier = oracle_model(tokenizer, {}, behaviour="copies", encoder_decoder=True)
    predicted, target = unshifted(copier, Forced("Norway is ruled from", "Lalad Lalak"))
    assert list(predicted) == list(target)
    ours = engine.answer(copier, [Forced("Norway is ruled from", "Lalad Lalak")])
    assert ours.forced("Norway is ruled from", "Lalad Lalak").accuracy == 0.0


@pytest.mark.parametrize("style", TOKENIZER_STYLES)
def test_each_word_of_the_world_is_one_token_after_a_space(style: str) -> None:
    for length in (1, 3):
        world = make_world(length)
        tokenizer = make_tokenizer(style, world.words)
        assert len(world.words) > 40
        for word in world.words:
            one = tokenizer(f"Norway {word}", add_special_tokens=False).input_ids
            other = tokenizer("Norway", add_special_tokens=False).input_ids
            assert len(one) - len(other) == 1, word


def test_a_metric_whose_rows_contradict_its_info_is_refused() -> None:
    @attrs.frozen
    class Misnamed:
        inner: Any

        @property
        def info(self) -> Any:
            return attrs.evolve(self.inner.info, name="other")

        def asks(self, request: Any, context: Any) -> Iterator[Any]:
            return iter(self.inner.asks(request, context))

        def rows(self, *args: Any) -> Iterator[Any]:
            return iter(self.inner.rows(*args))

    with pytest.raises(OracleError, match="contradicts its info"):
        check_metric(Misnamed(metrics("locality")[0]), cases=quick_cases()[:1])


def test_a_metric_that_measures_nothing_is_refused() -> None:
    @attrs.frozen
    class Silent:
        info: Any

        def asks(self, request: Any, context: Any) -> Iterator[Any]:
            return iter(())

        def rows(self, *args: Any) -> Iterator[Any]:
            return iter(())

    with pytest.raises(OracleError, match="gave no row"):
        check_metric(Silent(metrics("locality")[0].info), cases=quick_cases()[:1])
