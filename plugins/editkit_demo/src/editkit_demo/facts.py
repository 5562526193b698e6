"""The facts that the demo model was trained on, and the ways in which they are put.

Three tables lie in `data/`: `facts.csv` (subject, relation, object), `phrasings.csv`
(relation, template) and `two_hop.csv` (prompts whose answer needs two facts).
One phrasing of every fact was kept out of training, to measure generalization.
"""

from __future__ import annotations

import csv
import hashlib
from functools import cache
from pathlib import Path

import attrs

__all__ = [
    "Fact",
    "TwoHop",
    "held_out_phrasing",
    "load_facts",
    "load_two_hop",
    "phrasings",
    "relations",
    "trained_phrasings",
]

_DATA = Path(__file__).parent / "data"


@attrs.frozen(order=True)
class Fact:
    """One true statement: the `relation` of `subject` is `object`."""

    subject: str
    relation: str
    object: str


@attrs.frozen(kw_only=True)
class TwoHop:
    """A prompt whose `answer` needs two facts, `first` and then `second`.

    Attributes:
        prompt: Text without a trailing space; the answer follows after one space.
        subject: The name that stands in the prompt.
        first: The fact that leads from the subject to the bridge.
        second: The fact about the bridge; its object is the answer.
        answer: The object of the second fact.
        held_out: True when no training sentence had `second` as its second hop.
    """

    prompt: str
    subject: str
    first: Fact
    second: Fact
    answer: str
    held_out: bool


@cache
def load_facts() -> tuple[Fact, ...]:
    """Return every fact of the table, in its order."""
    return tuple(Fact(**row) for row in _rows("facts.csv"))


def relations() -> tuple[str, ...]:
    """Return the names of all relations, in the order of the table of phrasings."""
    return tuple(_templates())


def phrasings(relation: str) -> tuple[str, ...]:
    """Return the templates of a relation, each with one `{}` for the subject.

    A template has no trailing space; the object follows after one space, at the end.

    Raises:
        ValueError: If there is no such relation.
    """
    if relation not in _templates():
        known = ", ".join(relations())
        raise ValueError(f"no phrasings for relation {relation!r}; known relations: {known}")
    return _templates()[relation]


def held_out_phrasing(fact: Fact) -> str:
    """Return the one template that was never trained for this fact.

    It depends on subject and relation only, so a counterfactual object changes nothing.
    """
    templates = phrasings(fact.relation)
    digest = hashlib.sha256(f"{fact.subject}\n{fact.relation}".encode()).digest()
    return templates[int.from_bytes(digest[:8], "big") % len(templates)]


def trained_phrasings(fact: Fact) -> tuple[str, ...]:
    """Return the templates that were trained for this fact: all but the held-out one."""
    held_out = held_out_phrasing(fact)
    return tuple(template for template in phrasings(fact.relation) if template != held_out)


@cache
def load_two_hop() -> tuple[TwoHop, ...]:
    """Return every two-hop prompt of the table, in its order."""
    return tuple(
        TwoHop(
            prompt=row["prompt"],
            subject=row["subject"],
            first=Fact(row["first_subject"], row["first_relation"], row["first_object"]),
            second=Fact(row["second_subject"], row["second_relation"], row["answer"]),
            answer=row["answer"],
            held_out=row["held_out"] == "yes",
        )
        for row in _rows("two_hop.csv")
    )


@cache
def _templates() -> dict[str, tuple[str, ...]]:
    grouped: dict[str, list[str]] = {}
    for row in _rows("phrasings.csv"):
        grouped.setdefault(row["relation"], []).append(row["template"])
    return {relation: tuple(templates) for relation, templates in grouped.items()}


def _rows(name: str) -> list[dict[str, str]]:
    with (_DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
