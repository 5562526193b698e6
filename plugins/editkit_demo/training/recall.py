"""Measure what a model knows: the share of prompts that it completes with the right object.

`forced`: every token of the object is the most likely one, given the tokens before it.
`greedy`: the text generated up to the first period is the object, no more and no less; an
encoder-decoder answers a question with the object alone.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import attrs
import torch
from prose import prose_sentence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import editkit_demo.facts as facts_as
from editkit_demo.facts import (
    Fact,
    TwoHop,
    held_out_phrasing,
    load_facts,
    load_two_hop,
    trained_phrasings,
)

Form = Literal["sentence", "question"]
_ROWS = 256


@attrs.frozen
class Question:
    """A prompt, the answer that counts as right, and the group it is reported in."""

    prompt: str
    answer: str
    group: str


@attrs.frozen
class Score:
    """Share of right answers among `n` prompts, in percent."""

    n: int
    forced: float
    greedy: float


def form_of(model: PreTrainedModel) -> Form:
    """Return how facts are asked: an encoder-decoder answers questions."""
    return "question" if model.config.is_encoder_decoder else "sentence"


@torch.no_grad()
def recall(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> dict[str, Score]:
    """Score each group of questions, and all of them as `all`.

    The greedy text is right exactly when every token of the object *and* the period after it
    are the most likely ones, so one forward pass over the true text decides both measures.
    """
    was_training = model.training
    model.eval()
    right: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for start in range(0, len(questions), _ROWS):
        block = questions[start : start + _ROWS]
        for question, result in zip(block, _block(model, tokenizer, block), strict=True):
            right[question.group].append(result)
            right["all"].append(result)
    model.train(was_training)
    return {group: _score(results) for group, results in sorted(right.items())}


def _block(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, block: Sequence[Question]
) -> list[tuple[bool, bool]]:
    if model.config.is_encoder_decoder:
        return _answers(model, tokenizer, block)
    starts = [len(tokenizer(question.prompt)["input_ids"]) for question in block]
    texts = [tokenizer(f"{question.prompt} {question.answer}.")["input_ids"] for question in block]
    ids = padded(texts, 0)
    best = model(input_ids=ids).logits[:, :-1].argmax(-1)  # (rows, longest - 1)
    hit = best == ids[:, 1:]
    return [
        (
            bool(hit[row, start - 1 : len(text) - 2].all()),
            bool(hit[row, start - 1 : len(text) - 1].all()),
        )
        for row, (start, text) in enumerate(zip(starts, texts, strict=True))
    ]


def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, block: Sequence[Question]
) -> list[tuple[bool, bool]]:
    """Do the same for an encoder-decoder: its answer ends with the end of the text."""
    ids = padded([tokenizer(question.prompt)["input_ids"] for question in block], 0)
    answers = [tokenizer(question.answer)["input_ids"] for question in block]
    labels = padded(answers, -100)
    best = model(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        decoder_input_ids=after_start(labels),
    ).logits.argmax(-1)  # (rows, longest)
    hit = best == labels
    return [
        (bool(hit[row, : len(answer) - 1].all()), bool(hit[row, : len(answer)].all()))
        for row, answer in enumerate(answers)
    ]


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Return rows of tokens as one tensor (rows, longest), filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def after_start(labels: torch.Tensor) -> torch.Tensor:
    """Return what a decoder is given to predict `labels`: the start token 0, then all but one."""
    shifted = labels.clamp(min=0).roll(1, dims=1)
    shifted[:, 0] = 0
    return shifted


def _score(results: Sequence[tuple[bool, bool]]) -> Score:
    n = len(results)
    forced = 100 * sum(result[0] for result in results) / n
    greedy = 100 * sum(result[1] for result in results) / n
    return Score(n, round(forced, 2), round(greedy, 2))


def trained_questions(facts: Sequence[Fact], form: Form = "sentence") -> list[Question]:
    """Ask every fact in all phrasings that were trained for it."""
    trained = trained_phrasings if form == "sentence" else facts_as.trained_questions
    return [
        Question(template.format(fact.subject), fact.object, fact.relation)
        for fact in facts
        for template in trained(fact)
    ]


def held_out_questions(facts: Sequence[Fact], form: Form = "sentence") -> list[Question]:
    """Ask every fact in the phrasing that was never trained for it."""
    held_out = held_out_phrasing if form == "sentence" else facts_as.held_out_question
    return [
        Question(held_out(fact).format(fact.subject), fact.object, fact.relation) for fact in facts
    ]


def two_hop_questions(
    chains: Sequence[TwoHop], *, held_out: bool, form: Form = "sentence"
) -> list[Question]:
    """Ask the chains whose second hop was, or was not, kept out of training."""
    return [
        Question(
            chain.prompt if form == "sentence" else chain.question,
            chain.answer,
            chain.second.relation,
        )
        for chain in chains
        if chain.held_out == held_out
    ]


def in_context(questions: Sequence[Question], *, seed: int) -> list[Question]:
    """Put one to three other sentences before each prompt: prose, and facts of others."""
    rng = random.Random(f"context:{seed}")
    return [
        attrs.evolve(question, prompt=f"{_context(rng)} {question.prompt}")
        for question in questions
    ]


def _context(rng: random.Random) -> str:
    return " ".join(_one_sentence(rng) for _ in range(rng.randint(1, 3)))


def _one_sentence(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return prose_sentence(rng)
    fact = rng.choice(load_facts())
    return f"{rng.choice(trained_phrasings(fact)).format(fact.subject)} {fact.object}."


def full_report(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> dict[str, dict[str, Score]]:
    """Measure everything that the model card tells."""
    facts, chains = load_facts(), load_two_hop()
    form = form_of(model)
    asked = {
        "trained phrasings": trained_questions(facts, form),
        "held-out phrasings": held_out_questions(facts, form),
        "two-hop, trained": two_hop_questions(chains, held_out=False, form=form),
        "two-hop, second hop held out": two_hop_questions(chains, held_out=True, form=form),
    }
    for name in ("trained phrasings", "held-out phrasings"):
        asked[f"{name}, after 1-3 other sentences"] = in_context(asked[name], seed=seed)
    return {name: recall(model, tokenizer, questions) for name, questions in asked.items()}
