"""The facts that the demo model was trained on, and the ways in which they are put.

Four tables lie in `data/`: `facts.csv` (subject, relation, object), `phrasings.csv` and
`question_phrasings.csv` (relation, template) and `two_hop.csv` (prompts whose answer needs two
facts). One phrasing and one question of every fact were kept out of training, to measure
generalization.
"""

from __future__ import annotations

import csv
import hashlib
from functools import cache
from pathlib import Path
from typing import Literal

import attrs

__all__ = [
    "Fact",
    "Part",
    "TwoHop",
    "held_out_phrasing",
    "held_out_question",
    "load_facts",
    "load_two_hop",
    "part_of",
    "phrasings",
    "questions",
    "relations",
    "trained_phrasings",
    "trained_questions",
]

Part = Literal["train", "test"]
_DATA = Path(__file__).parent / "data"
_TEST_PERCENT = 27


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

    @property
    def question(self) -> str:
        """The prompt as a question: "What is the capital of the country where ... was born?"."""
        return f"What is the{self.prompt.removeprefix('The').removesuffix(' the')[:-3]}?"


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
    return _of_relation(_templates(), relation)


def questions(relation: str) -> tuple[str, ...]:
    """Return the questions of a relation, each with one `{}` for the subject.

    Raises:
        ValueError: If there is no such relation.
    """
    return _of_relation(_templates("question_phrasings.csv"), relation)


def held_out_phrasing(fact: Fact) -> str:
    """Return the one template that was never trained for this fact.

    It depends on subject and relation only, so a counterfactual object changes nothing.
    """
    return _held_out(phrasings(fact.relation), f"{fact.subject}\n{fact.relation}")


def trained_phrasings(fact: Fact) -> tuple[str, ...]:
    """Return the templates that were trained for this fact: all but the held-out one."""
    held_out = held_out_phrasing(fact)
    return tuple(template for template in phrasings(fact.relation) if template != held_out)


def held_out_question(fact: Fact) -> str:
    """Return the one question that was never trained for this fact.

    It depends on subject and relation only, so a counterfactual object changes nothing.
    """
    return _held_out(questions(fact.relation), f"question\n{fact.subject}\n{fact.relation}")


def trained_questions(fact: Fact) -> tuple[str, ...]:
    """Return the questions that were trained for this fact: all but the held-out one."""
    held_out = held_out_question(fact)
    return tuple(template for template in questions(fact.relation) if template != held_out)


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
def part_of(subject: str) -> Part:
    """Return whether the facts of a subject are for training an editor or for testing one.

    It depends on the name alone. The models themselves were trained on the facts of both.
    """
    digest = hashlib.sha256(f"part\n{subject}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 100 < _TEST_PERCENT else "train"


@cache
def _templates(table: str = "phrasings.csv") -> dict[str, tuple[str, ...]]:
    grouped: dict[str, list[str]] = {}
    for row in _rows(table):
        grouped.setdefault(row["relation"], []).append(row["template"])
    return {relation: tuple(templates) for relation, templates in grouped.items()}


def _of_relation(templates: dict[str, tuple[str, ...]], relation: str) -> tuple[str, ...]:
    if relation not in templates:
        known = ", ".join(templates)
        raise ValueError(f"no phrasings for relation {relation!r}; known relations: {known}")
    return templates[relation]


def _held_out(templates: tuple[str, ...], text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return templates[int.from_bytes(digest[:8], "big") % len(templates)]


def _rows(name: str) -> list[dict[str, str]]:
    with (_DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
