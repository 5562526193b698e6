"""Counterfactual edits of the demo facts, with probes for what should move and what should not.

For every edit: the held-out phrasing of the fact (generalization); the same relation of other
subjects (`neighborhood`), the subject's other facts (`same_subject`) and facts of subjects that
share a part of its name (`near_name`), which should stay; and two-hop prompts that should follow.
All of it comes in one of two forms: sentences to be finished, or questions.

A part of the facts, `train` or `test`, is a world of its own: no probe of an edit asks about a
subject of the other part.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache

import attrs

from editkit_core.errors import InvalidParameterError
from editkit_core.types import EditRequest, Probe
from editkit_demo.facts import (
    Fact,
    Part,
    TwoHop,
    held_out_phrasing,
    held_out_question,
    load_facts,
    load_two_hop,
    part_of,
    trained_phrasings,
    trained_questions,
)

NEIGHBOURS = 10
NEAR_NAMES = 5
_SMALL_WORDS = frozenset({"the", "of", "and", "a", "an", "in", "to", "de", "von", "van", "der"})


@attrs.frozen(kw_only=True)
class Form:
    """How facts are put to a model.

    Attributes:
        trained: The templates that were trained for a fact.
        held_out: The one that was not.
        chain: The prompt of a two-hop chain.
    """

    trained: Callable[[Fact], tuple[str, ...]]
    held_out: Callable[[Fact], str]
    chain: Callable[[TwoHop], str]


SENTENCES = Form(
    trained=trained_phrasings, held_out=held_out_phrasing, chain=lambda hop: hop.prompt
)
QUESTIONS = Form(
    trained=trained_questions, held_out=held_out_question, chain=lambda hop: hop.question
)


def counterfactual_requests(
    count: int | None, seed: int = 0, *, form: Form = SENTENCES, part: Part | None = None
) -> tuple[EditRequest, ...]:
    """Draw edits that give facts another object of the same relation.

    Args:
        count: How many, drawn without replacement; None takes all, in the order of the table.
        seed: Equal seeds draw equal requests, and a larger count begins with the smaller one's.
        form: Sentences or questions.
        part: Take the facts of one part only.

    Raises:
        InvalidParameterError: `count` is not between 1 and the number of facts.
    """
    facts = list(facts_of(part))
    if count is not None:
        if not 1 <= count <= len(facts):
            raise InvalidParameterError(
                f"{count} edits were asked for; there are {len(facts)} facts. Ask for 1 to "
                f"{len(facts)}."
            )
        random.Random(seed).shuffle(facts)
    return tuple(
        counterfactual_request(fact, seed=seed, form=form, part=part) for fact in facts[:count]
    )


def counterfactual_request(
    fact: Fact,
    *,
    seed: int = 0,
    target: str | None = None,
    form: Form = SENTENCES,
    part: Part | None = None,
) -> EditRequest:
    """Make the request that gives one fact another object, with all its probes.

    Args:
        fact: The fact to change.
        seed: Decides the target, the phrasing and the probes, together with the fact.
        target: The new object instead of a drawn one.
        form: Sentences or questions.
        part: Draw the probes from one part of the facts only.
    """
    rng = random.Random(f"{seed}\n{fact.subject}\n{fact.relation}")
    prompt = rng.choice(form.trained(fact))
    others = sorted({f.object for f in _by_relation(None)[fact.relation]} - {fact.object})
    target = target or rng.choice(others)

    def probes(facts: list[Fact]) -> tuple[Probe, ...]:
        return tuple(
            Probe(rng.choice(form.trained(f)).replace("{}", f.subject), (f.object,)) for f in facts
        )

    return EditRequest(
        id=f"{fact.subject}/{fact.relation}",
        prompt=prompt,
        subject=fact.subject,
        relation=fact.relation,
        target_new=target,
        target_true=fact.object,
        paraphrases=(form.held_out(fact),),
        locality={
            "neighborhood": probes(_neighbours(fact, rng, part)),
            "same_subject": probes(_same_subject(fact)),
            "near_name": probes(_near_names(fact, rng, part)),
        },
        portability={
            "two_hop": tuple(
                Probe(form.chain(hop), (target,))
                for hop in load_two_hop()
                if (hop.second.subject, hop.second.relation) == (fact.subject, fact.relation)
                and part in (None, part_of(hop.first.subject))
            )
        },
    )


@cache
def facts_of(part: Part | None) -> tuple[Fact, ...]:
    """Return the facts of a part, in the order of the table; None means all."""
    return tuple(fact for fact in load_facts() if part in (None, part_of(fact.subject)))


def _neighbours(fact: Fact, rng: random.Random, part: Part | None) -> list[Fact]:
    """Other subjects of the relation: first those with the same object, as CounterFact does."""
    same = [f for f in _by_relation(part)[fact.relation] if f.subject != fact.subject]
    rng.shuffle(same)
    return sorted(same, key=lambda f: f.object != fact.object)[:NEIGHBOURS]


def _same_subject(fact: Fact) -> list[Fact]:
    return [f for f in _by_subject(None)[fact.subject] if f.relation != fact.relation]


def _near_names(fact: Fact, rng: random.Random, part: Part | None) -> list[Fact]:
    near = [
        f
        for name_part in sorted(_name_parts(fact.subject))
        for name in _by_name_part(part).get(name_part, [])
        if name != fact.subject
        for f in _by_subject(part)[name]
    ]
    rng.shuffle(near)
    return near[:NEAR_NAMES]


def _name_parts(name: str) -> set[str]:
    return {p for p in re.findall(r"[a-z]{3,}", name.lower()) if p not in _SMALL_WORDS}


@cache
def _by_relation(part: Part | None) -> Mapping[str, list[Fact]]:
    return _grouped("relation", part)


@cache
def _by_subject(part: Part | None) -> Mapping[str, list[Fact]]:
    return _grouped("subject", part)


@cache
def _by_name_part(part: Part | None) -> Mapping[str, list[str]]:
    grouped: dict[str, list[str]] = defaultdict(list)
    for name in _by_subject(part):
        for name_part in _name_parts(name):
            grouped[name_part].append(name)
    return dict(grouped)


def _grouped(field: str, part: Part | None) -> dict[str, list[Fact]]:
    grouped: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts_of(part):
        grouped[getattr(fact, field)].append(fact)
    return dict(grouped)
