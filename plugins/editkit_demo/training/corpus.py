"""Turn the facts into documents: several sentences of several kinds, in random order.

A model trained on single sentences knows its facts only at the start of a text, and edits
computed with other text in front then fail. So every document mixes facts in many forms,
facts turned around, two-hop sentences, kinds of things and plain prose. A training window
begins with a document, with no `<|endoftext|>` before it, as a prompt does.

The batch of a step depends on the seed and the number of the step alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property, lru_cache

import attrs
from prose import prose_sentence
from transformers import PreTrainedTokenizerBase

from editkit_demo.facts import Fact, TwoHop, load_facts, load_two_hop, trained_phrasings

END_OF_TEXT = "<|endoftext|>"
WINDOWS = (64, 64, 128, 128, 256)
_NOT_AN_ANSWER_WEIGHT = 0.3

_REVERSED = {
    "capital": ("{o} is the capital of {s}.", "The city {o} is the capital of {s}."),
    "author": ("{o} wrote {s}.", "{o} is the author of {s}."),
    "composer": ("{o} composed {s}.", "{o} is the composer of {s}."),
    "inventor": ("{o} invented {s}.", "{o} is the inventor of {s}."),
    "founder": ("{o} founded {s}.", "{o} is the founder of {s}."),
    "symbol": ("{o} is the symbol of {s}.", "{o} stands for {s}."),
    "birthplace": ("One person from {o} is {s}.",),
    "headquarters": ("One company from {o} is {s}.",),
    "continent": ("One country of {o} is {s}.",),
}
_KINDS = {
    "capital": "a country",
    "continent": "a country",
    "sport": "an athlete",
    "instrument": "a musician",
    "field": "a scholar",
    "movement": "a painter",
    "author": "a work of literature",
    "composer": "a work of music",
    "founder": "a company",
    "headquarters": "a company",
    "inventor": "an invention",
    "symbol": "a chemical element",
}
_KIND_FORMS = (
    "As a name, {s} stands for {k}.",
    "{k} with a well-known name is {s}.",
    "What is meant by {s}? It is {k}.",
)


@attrs.frozen
class Sentence:
    """A sentence whose last words, `answer`, are what a reader must know."""

    lead: str
    answer: str = ""

    @property
    def text(self) -> str:
        """The whole sentence, with its period."""
        return f"{self.lead} {self.answer}." if self.answer else self.lead


@attrs.frozen
class Corpus:
    """All that can be said, and how a document is put together from it."""

    facts: tuple[Fact, ...] = attrs.field(factory=load_facts)
    chains: tuple[TwoHop, ...] = attrs.field(
        factory=lambda: tuple(hop for hop in load_two_hop() if not hop.held_out)
    )

    def document(self, rng: random.Random) -> list[Sentence]:
        """Return the sentences of one document, in order."""
        shape = rng.random()
        if shape < 0.12:
            return [self._fact(rng.choice(self.facts), rng)]
        length = rng.randint(2, 12)
        said = self._about_few(length, rng) if shape < 0.55 else self._about_many(length, rng)
        rng.shuffle(said)
        if rng.random() < 0.15:
            said.insert(0, self._cut_prose(rng))
        return said

    def _about_few(self, length: int, rng: random.Random) -> list[Sentence]:
        subjects = [rng.choice(self.facts).subject for _ in range(rng.randint(1, 3))]
        facts = [fact for subject in subjects for fact in self._by_subject[subject]]
        rng.shuffle(facts)
        said = [self._say(fact, rng) for fact in facts[:length]]
        if rng.random() < 0.15:
            said.append(self._fact(facts[0], rng))
        said += [self._other(rng) for _ in range(length - len(said))]
        return said

    def _about_many(self, length: int, rng: random.Random) -> list[Sentence]:
        return [
            self._say(rng.choice(self.facts), rng) if rng.random() < 0.75 else self._other(rng)
            for _ in range(length)
        ]

    def _say(self, fact: Fact, rng: random.Random) -> Sentence:
        chance = rng.random()
        if chance < 0.07 and fact.relation in _REVERSED:
            lead = rng.choice(_REVERSED[fact.relation])
            return Sentence(lead.format(s=fact.subject, o=fact.object))
        if chance < 0.10 and fact.relation in _KINDS:
            kind = _KINDS[fact.relation]
            text = rng.choice(_KIND_FORMS).format(s=fact.subject, k=kind)
            return Sentence(text[0].upper() + text[1:] if text.startswith(kind) else text)
        return self._fact(fact, rng)

    def _fact(self, fact: Fact, rng: random.Random) -> Sentence:
        return Sentence(rng.choice(trained_phrasings(fact)).format(fact.subject), fact.object)

    def _other(self, rng: random.Random) -> Sentence:
        if self.chains and rng.random() < 0.40:
            chain = rng.choice(self.chains)
            return Sentence(chain.prompt, chain.answer)
        return Sentence(prose_sentence(rng))

    def _cut_prose(self, rng: random.Random) -> Sentence:
        words = prose_sentence(rng).split()
        return Sentence(" ".join(words[rng.randrange(len(words)) :]))

    @cached_property
    def _by_subject(self) -> dict[str, list[Fact]]:
        grouped: dict[str, list[Fact]] = {}
        for fact in self.facts:
            grouped.setdefault(fact.subject, []).append(fact)
        return grouped


class Encoder:
    """Encodes sentence by sentence and remembers what it has encoded.

    With a prefix space and one space between sentences, the tokens of a text are the tokens
    of its sentences one after the other (a test compares the two).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Encode with `tokenizer`, which must put a space before the first word."""
        self.end_of_text: int = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        self._tokenizer = tokenizer
        self.sentence = lru_cache(maxsize=200_000)(self._sentence)

    def _sentence(self, sentence: Sentence) -> tuple[list[int], list[float]]:
        ids = self._tokenizer(sentence.text)["input_ids"]
        known = len(self._tokenizer(sentence.lead)["input_ids"]) if sentence.answer else len(ids)
        return ids, [_NOT_AN_ANSWER_WEIGHT] * known + [1.0] * (len(ids) - known)

    def document(self, sentences: Sequence[Sentence]) -> tuple[list[int], list[float]]:
        """Return the tokens of a document and the weight of each in the loss."""
        ids: list[int] = []
        weights: list[float] = []
        for sentence in sentences:
            more_ids, more_weights = self.sentence(sentence)
            ids += more_ids
            weights += more_weights
        return [*ids, self.end_of_text], [*weights, _NOT_AN_ANSWER_WEIGHT]


def batch(
    corpus: Corpus, encoder: Encoder, *, seed: int, step: int, tokens: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Return the windows of a step: tokens and loss weights, each (rows, window)."""
    rng = random.Random(f"{seed}:{step}")
    window = rng.choice(WINDOWS)
    rows = [_window(corpus, encoder, window, rng) for _ in range(max(1, tokens // window))]
    return [ids for ids, _ in rows], [weights for _, weights in rows]


def _window(
    corpus: Corpus, encoder: Encoder, length: int, rng: random.Random
) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    while len(ids) < length:
        more_ids, more_weights = encoder.document(corpus.document(rng))
        ids += more_ids
        weights += more_weights
    return ids[:length], weights[:length]
