"""Turn the facts into questions with answers, for a model that reads and then writes.

Most are questions about one fact, some need two, and some are sentences to be finished, so that
the model learns its subjects in more than one kind of text. In some steps other sentences stand
before each question.

The batch of a step depends on the seed and the number of the step alone.
"""

from __future__ import annotations

import random
from functools import cache, lru_cache

import attrs
from prose import prose_sentence
from transformers import PreTrainedTokenizerBase

from editkit_demo.facts import (
    Fact,
    TwoHop,
    load_facts,
    load_two_hop,
    trained_phrasings,
    trained_questions,
)

_TWO_HOP = 0.10
_SENTENCE = 0.12
_AFTER_TEXT = 0.20


@attrs.frozen
class Asked:
    """What the encoder reads, and what the decoder should write."""

    source: str
    answer: str


@attrs.frozen
class Questions:
    """All that can be asked."""

    facts: tuple[Fact, ...] = attrs.field(factory=load_facts)
    chains: tuple[TwoHop, ...] = attrs.field(
        factory=lambda: tuple(hop for hop in load_two_hop() if not hop.held_out)
    )

    def draw(self, rng: random.Random) -> Asked:
        """Return one question with its answer."""
        chance = rng.random()
        if chance < _TWO_HOP:
            chain = rng.choice(self.chains)
            return Asked(chain.question, chain.answer)
        fact = rng.choice(self.facts)
        if chance < _TWO_HOP + _SENTENCE:
            return Asked(rng.choice(_open_sentences(fact)).format(fact.subject), fact.object)
        return Asked(rng.choice(trained_questions(fact)).format(fact.subject), fact.object)

    def text_before(self, rng: random.Random) -> str:
        """Return one to three sentences that have nothing to do with the question after them."""
        return " ".join(self._sentence(rng) for _ in range(rng.randint(1, 3)))

    def _sentence(self, rng: random.Random) -> str:
        if rng.random() < 0.5:
            return prose_sentence(rng)
        fact = rng.choice(self.facts)
        return f"{rng.choice(_open_sentences(fact)).format(fact.subject)} {fact.object}."


@cache
def _open_sentences(fact: Fact) -> tuple[str, ...]:
    """Leave out the phrasings that hold a question: it may be the one that is held out."""
    return tuple(template for template in trained_phrasings(fact) if "?" not in template)


class QuestionEncoder:
    """Encodes texts, each with its end, and remembers what it has encoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Encode with `tokenizer`, which must put the end of the text behind it."""
        self.encode = lru_cache(maxsize=200_000)(lambda text: tokenizer(text)["input_ids"])


def question_batch(
    asked: Questions, encoder: QuestionEncoder, *, seed: int, step: int, tokens: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the sources and the answers of a step, together about `tokens` long."""
    rng = random.Random(f"questions:{seed}:{step}")
    after_text = rng.random() < _AFTER_TEXT
    sources: list[list[int]] = []
    answers: list[list[int]] = []
    while tokens > 0:
        drawn = asked.draw(rng)
        before = f"{asked.text_before(rng)} " if after_text else ""
        sources.append(encoder.encode(f"{before}{drawn.source}"))
        answers.append(encoder.encode(drawn.answer))
        tokens -= len(sources[-1]) + len(answers[-1])
    return sources, answers
