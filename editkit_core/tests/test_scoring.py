"""Scoring against an oracle that is always right, one that is always wrong, and plain forwards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from editkit_core import EditRequest, Probe
from editkit_core.metrics.ask import Forced, ForcedReply, agreement
from editkit_core.metrics.engine import answer
from editkit_core.metrics.evaluate import evaluate_patch
from editkit_core.metrics.report import Report
from editkit_core.metrics.scoring import contains, cut, exact_match, generated, normalise
from editkit_core.models import text
from editkit_core.models.editable import EditableModel
from editkit_core.testing.models import tiny_model, tiny_tokenizer
from editkit_core.testing.patches import random_patch

PAIRS = [
    ("The capital of Norway is", "Oslo"),
    ("Marie Curie was born in ", "the old city of Warsaw"),
    ("Gold is", "Au."),
    ("Oslo", "is the capital of Norway"),
]
STYLES = list(product(["bpe", "unigram"], [False, True], [False, True]))


def teacher_forced(model: Any, pairs: Sequence[tuple[str, str]], **how: Any) -> list[ForcedReply]:
    replies = answer(model, [Forced(*pair) for pair in pairs], side="right", **how)
    return [replies.forced(*pair) for pair in pairs]


class Oracle:
    """Knows what comes next in every row, and puts it (or the token after it) first."""

    def __init__(self, tokenizer: Any, *, wrong: bool = False) -> None:
        self.tokenizer, self.pad_id, self.device = tokenizer, 0, torch.device("cpu")
        self.is_encoder_decoder = False
        self._shift = int(wrong)

    def check_length(self, n_tokens: int, what: str) -> None:
        """Anything fits."""

    def asking(self, queries: object) -> AbstractContextManager[None]:
        """It reads no prompts, so where they end changes nothing."""
        return nullcontext()

    def logits(self, batch: text.Batch) -> torch.Tensor:
        """One-hot logits of the row's own next token."""
        n = len(self.tokenizer)
        following = (batch.input_ids.roll(-1, dims=1) + self._shift) % n
        return torch.nn.functional.one_hot(following, n).float()


@pytest.mark.parametrize(("kind", "bos", "prefix_space"), STYLES)
def test_an_oracle_scores_exactly_one_and_its_opposite_zero(
    kind: Any, bos: bool, prefix_space: bool
) -> None:
    tokenizer = tiny_tokenizer(kind, bos=bos, prefix_space=prefix_space)
    right = teacher_forced(Oracle(tokenizer), PAIRS)
    wrong = teacher_forced(Oracle(tokenizer, wrong=True), PAIRS)
    assert [f.accuracy for f in right] == [1.0] * len(PAIRS)
    assert [f.accuracy for f in wrong] == [0.0] * len(PAIRS)


@pytest.mark.parametrize(("kind", "bos", "prefix_space"), STYLES)
def test_every_answer_token_is_scored_and_no_prompt_token(
    kind: Any, bos: bool, prefix_space: bool
) -> None:
    tokenizer = tiny_tokenizer(kind, bos=bos, prefix_space=prefix_space)
    for (prompt, said), forced in zip(
        PAIRS,
        teacher_forced(Oracle(tokenizer), PAIRS),
        strict=True,
    ):
        whole = tokenizer.decode(forced.target)
        assert whole.strip() == said, prompt


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_batched_scores_equal_plain_forwards(family: str) -> None:
    model = tiny_model(family)
    many = teacher_forced(model, PAIRS, rows=3)
    for (prompt, said), forced in zip(PAIRS, many, strict=True):
        ids = model.tokenizer(text.join(prompt, said), return_tensors="pt").input_ids
        with torch.no_grad():
            best = model.model(ids).logits[0].argmax(-1).tolist()
        n = len(forced.target)
        assert ids[0, -n:].tolist() == list(forced.target)
        assert best[-n - 1 : -1] == list(forced.predicted)


def test_agreement_is_the_share_of_equal_positions() -> None:
    assert agreement([1, 2, 3, 4], [1, 2, 9, 9]) == 0.5
    with pytest.raises(ValueError, match=r"zip"):
        agreement([1], [1, 2])


@pytest.mark.parametrize(
    ("text_", "answers", "expected"),
    [
        (" Paris. It is", (), "Paris"),
        ("Paris\nLondon", (), "Paris"),
        ("Paris! And", (), "Paris"),
        ("Paris", (), "Paris"),
        ("", (), ""),
        ("3.5 metres. Then", (), "3.5 metres"),
        ("H. G. Wells. He wrote", (), "H. G. Wells"),
        ("F. Scott Fitzgerald.", (), "F. Scott Fitzgerald"),
        ("St. Louis. It is", ("St. Louis",), "St. Louis"),
        ("st. louis. It is", ("Rome", "St. Louis"), "st. louis"),
        ("Washington D.C. is", ("Washington D.C.",), "Washington D.C"),
        ("Vitamin C. It is", ("Vitamin C",), "Vitamin C"),
        ("Rome. It is", ("St. Louis",), "Rome"),
        ("Rome is big. It is", ("Rome",), "Rome is big"),
        ("Rome. It is", ("",), "Rome"),
    ],
)
def test_a_continuation_ends_at_its_natural_stop(
    text_: str, answers: Sequence[str], expected: str
) -> None:
    assert cut(text_, answers) == expected


@pytest.mark.parametrize(
    ("text_", "expected"),
    [
        ("The  Hague", "hague"),
        ("Washington, D.C.", "washington dc"),
        ("a the an", ""),
        ("Theodore", "theodore"),
        ("ÖSTERREICH", "österreich"),
    ],
)
def test_texts_are_normalised_as_in_squad(text_: str, expected: str) -> None:
    assert normalise(text_) == expected


def test_exact_match_takes_any_answer_and_nothing_more() -> None:
    assert exact_match("the Hague", ["Amsterdam", "Hague"])
    assert not exact_match("Hague is", ["Hague"])
    assert not exact_match("", ["Hague"])


def test_contains_looks_for_whole_words() -> None:
    assert contains("It is in New York today", ["new york"])
    assert not contains("Romeo", ["Rome"])
    assert not contains("anything", [""])


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("gpt2", seed=1)


def test_generated_texts_come_in_the_order_asked(model: EditableModel) -> None:
    prompts = [prompt for prompt, _ in PAIRS]
    alone = [generated(model, [prompt], max_new_tokens=4)[0] for prompt in prompts]
    assert generated(model, prompts, max_new_tokens=4) == alone
    assert generated(model, []) == []


REQUESTS = (
    EditRequest(
        prompt="The capital of {} is",
        subject="Norway",
        target_new="Lima",
        paraphrases=("{} is ruled from",),
        locality={"near": (Probe("The capital of Peru is", ("Lima",)), Probe("The river runs"))},
        portability={"hop": (Probe("The currency of Norway is", ("the franc",)),)},
    ),
)


@pytest.fixture(scope="module")
def report(model: EditableModel) -> Report:
    return evaluate_patch(model, REQUESTS, random_patch(model, scale=2.0))


def test_locality_is_agreement_with_the_model_before_the_edit(
    model: EditableModel, report: Report
) -> None:
    patch = random_patch(model, scale=2.0)
    pair = ("The capital of Peru is", "Lima")
    (before,) = teacher_forced(model, [pair])
    from editkit_core.patch.apply import apply_patch

    with apply_patch(model, patch):
        (after,) = teacher_forced(model, [pair])
    (row,) = (
        r
        for r in report.rows
        if (r.prompt, r.protocol, r.metric) == (pair[0], "tf_token", "locality")
    )
    assert row.before == 1.0
    assert row.after == agreement(after.predicted, before.predicted)


def test_a_patch_that_changes_nothing_keeps_all_locality(model: EditableModel) -> None:
    unchanged = evaluate_patch(model, REQUESTS, random_patch(model, scale=0.0))
    for score in unchanged.scores():
        assert score.before == score.after
        if score.metric == "locality":
            assert score.after == 1.0


def test_every_probe_is_measured_by_forcing_and_by_generation(report: Report) -> None:
    seen = {(r.metric, r.probe, r.protocol) for r in report.rows}
    both = {"tf_token", "gen_em"}
    assert {p for m, _, p in seen if m == "locality"} == both
    for metric in ("reliability", "generalization", "portability"):
        assert {p for m, _, p in seen if m == metric} == both | {"gen_contains"}


def test_evaluating_leaves_the_model_bit_identical(model: EditableModel) -> None:
    before = model.state_digest()
    evaluate_patch(model, REQUESTS, random_patch(model))
    assert model.state_digest() == before


def test_progress_is_ended_when_evaluating_fails(model: EditableModel) -> None:
    from editkit_core import EditContext

    calls: list[str] = []
    progress = SimpleNamespace(
        start=lambda *_: calls.append("start"),
        advance=lambda *_: calls.append("advance"),
        finish=lambda: calls.append("finish"),
    )
    other = random_patch(tiny_model("gpt2", seed=2))
    with pytest.raises(Exception, match=r"EK-P03"):
        evaluate_patch(model, REQUESTS, other, context=EditContext(progress=progress))
    assert calls == ["start", "advance", "finish"]
