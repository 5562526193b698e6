"""Measure what a model knows: the share of prompts that it completes with the right object.

`forced`: every token of the object is the most likely one, given the tokens before it.
`greedy`: the text generated up to the first period is the object, no more and no less.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import attrs
import torch
from prose import prose_sentence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit_demo.facts import (
    Fact,
    TwoHop,
    held_out_phrasing,
    load_facts,
    load_two_hop,
    trained_phrasings,
)

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
    starts = [len(tokenizer(question.prompt)["input_ids"]) for question in block]
    texts = [tokenizer(f"{question.prompt} {question.answer}.")["input_ids"] for question in block]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    best = model(ids).logits[:, :-1].argmax(-1)  # (rows, longest - 1)
    hit = best == ids[:, 1:]
    return [
        (
            bool(hit[row, start - 1 : len(text) - 2].all()),
            bool(hit[row, start - 1 : len(text) - 1].all()),
        )
        for row, (start, text) in enumerate(zip(starts, texts, strict=True))
    ]


def _score(results: Sequence[tuple[bool, bool]]) -> Score:
    n = len(results)
    forced = 100 * sum(result[0] for result in results) / n
    greedy = 100 * sum(result[1] for result in results) / n
    return Score(n, round(forced, 2), round(greedy, 2))


def trained_questions(facts: Sequence[Fact]) -> list[Question]:
    """Ask every fact in all phrasings that were trained for it."""
    return [
        Question(template.format(fact.subject), fact.object, fact.relation)
        for fact in facts
        for template in trained_phrasings(fact)
    ]


def held_out_questions(facts: Sequence[Fact]) -> list[Question]:
    """Ask every fact in the phrasing that was never trained for it."""
    return [
        Question(held_out_phrasing(fact).format(fact.subject), fact.object, fact.relation)
        for fact in facts
    ]


def two_hop_questions(chains: Sequence[TwoHop], *, held_out: bool) -> list[Question]:
    """Ask the chains whose second hop was, or was not, kept out of training."""
    return [
        Question(chain.prompt, chain.answer, chain.second.relation)
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
    asked = {
        "trained phrasings": trained_questions(facts),
        "held-out phrasings": held_out_questions(facts),
        "two-hop, trained": two_hop_questions(chains, held_out=False),
        "two-hop, second hop held out": two_hop_questions(chains, held_out=True),
    }
    for name in ("trained phrasings", "held-out phrasings"):
        asked[f"{name}, after 1-3 other sentences"] = in_context(asked[name], seed=seed)
    return {name: recall(model, tokenizer, questions) for name, questions in asked.items()}
