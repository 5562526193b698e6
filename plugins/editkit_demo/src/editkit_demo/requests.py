"""Counterfactual edits of the demo facts, with probes for what should move and what should not.

For every edit: the held-out phrasing of the fact (generalization); the same relation of other
subjects (`neighborhood`), the subject's other facts (`same_subject`) and facts of subjects that
share a part of its name (`near_name`), which should stay; and two-hop prompts that should follow.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from functools import cache

from editkit_core.errors import InvalidParameterError
from editkit_core.types import EditRequest, Probe
from editkit_demo.facts import (
    Fact,
    held_out_phrasing,
    load_facts,
    load_two_hop,
    trained_phrasings,
)

NEIGHBOURS = 10
NEAR_NAMES = 5
_SMALL_WORDS = frozenset({"the", "of", "and", "a", "an", "in", "to", "de", "von", "van", "der"})


def counterfactual_requests(count: int, seed: int = 0) -> tuple[EditRequest, ...]:
    """Draw edits that give facts another object of the same relation.

    Args:
        count: How many, drawn without replacement from all facts.
        seed: Equal seeds draw equal requests, and a larger count begins with the smaller one's.

    Raises:
        InvalidParameterError: `count` is not between 1 and the number of facts.
    """
    facts = list(load_facts())
    if not 1 <= count <= len(facts):
        raise InvalidParameterError(
            f"{count} edits were asked for; there are {len(facts)} facts. Ask for 1 to "
            f"{len(facts)}."
        )
    random.Random(seed).shuffle(facts)
    return tuple(counterfactual_request(fact, seed=seed) for fact in facts[:count])


def counterfactual_request(fact: Fact, *, seed: int = 0, target: str | None = None) -> EditRequest:
    """Make the request that gives one fact another object, with all its probes.

    Args:
        fact: The fact to change.
        seed: Decides the target, the phrasing and the probes, together with the fact.
        target: The new object instead of a drawn one.
    """
    rng = random.Random(f"{seed}\n{fact.subject}\n{fact.relation}")
    prompt = rng.choice(trained_phrasings(fact))
    others = sorted({f.object for f in _by_relation()[fact.relation]} - {fact.object})
    target = target or rng.choice(others)
    return EditRequest(
        id=f"{fact.subject}/{fact.relation}",
        prompt=prompt,
        subject=fact.subject,
        relation=fact.relation,
        target_new=target,
        target_true=fact.object,
        paraphrases=(held_out_phrasing(fact),),
        locality={
            "neighborhood": _probes(_neighbours(fact, rng), rng),
            "same_subject": _probes(_same_subject(fact), rng),
            "near_name": _probes(_near_names(fact, rng), rng),
        },
        portability={
            "two_hop": tuple(
                Probe(hop.prompt, (target,))
                for hop in load_two_hop()
                if (hop.second.subject, hop.second.relation) == (fact.subject, fact.relation)
            )
        },
    )


def _neighbours(fact: Fact, rng: random.Random) -> list[Fact]:
    """Other subjects of the relation: first those with the same object, as CounterFact does."""
    same = [f for f in _by_relation()[fact.relation] if f.subject != fact.subject]
    rng.shuffle(same)
    return sorted(same, key=lambda f: f.object != fact.object)[:NEIGHBOURS]


def _same_subject(fact: Fact) -> list[Fact]:
    return [f for f in _by_subject()[fact.subject] if f.relation != fact.relation]


def _near_names(fact: Fact, rng: random.Random) -> list[Fact]:
    near = [
        f
        for part in _parts(fact.subject)
        for name in _by_part()[part]
        if name != fact.subject
        for f in _by_subject()[name]
    ]
    rng.shuffle(near)
    return near[:NEAR_NAMES]


def _probes(facts: list[Fact], rng: random.Random) -> tuple[Probe, ...]:
    return tuple(
        Probe(rng.choice(trained_phrasings(f)).replace("{}", f.subject), (f.object,)) for f in facts
    )


def _parts(name: str) -> set[str]:
    return {p for p in re.findall(r"[a-z]{3,}", name.lower()) if p not in _SMALL_WORDS}


@cache
def _by_relation() -> dict[str, list[Fact]]:
    return _grouped("relation")


@cache
def _by_subject() -> dict[str, list[Fact]]:
    return _grouped("subject")


@cache
def _by_part() -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = defaultdict(list)
    for name in _by_subject():
        for part in _parts(name):
            grouped[part].append(name)
    return dict(grouped)


def _grouped(field: str) -> dict[str, list[Fact]]:
    grouped: dict[str, list[Fact]] = defaultdict(list)
    for fact in load_facts():
        grouped[getattr(fact, field)].append(fact)
    return dict(grouped)
