"""Counterfactual requests of (subject, relation, object) triples and templates."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import attrs

from editkit_core.types import SLOT, EditRequest, Probe

_T = TypeVar("_T")
NEIGHBOURS = 10
SAME_SUBJECT = 5
NEAR_NAMES = 5
_PART = re.compile(r"[^\W\d_]{4,}")


@attrs.frozen(kw_only=True)
class Triple:
    """One true statement.

    Attributes:
        relation: Its relation.
        subject: What it is about.
        object: The answer.
        id: Its name; may be empty.
    """

    relation: str
    subject: str
    object: str
    id: str = ""


class Triples:
    """Triples with templates, looked up by what they share.

    Args:
        triples: Only of relations that have templates.
        templates: By relation, each with one ``{}`` for the subject and the object after its end.
    """

    def __init__(self, triples: Sequence[Triple], templates: Mapping[str, Sequence[str]]) -> None:
        self._templates = templates
        self._by_relation: dict[str, list[Triple]] = defaultdict(list)
        self._by_object: dict[tuple[str, str], list[Triple]] = defaultdict(list)
        self._by_subject: dict[str, list[Triple]] = defaultdict(list)
        self._by_part: dict[str, list[str]] = defaultdict(list)
        for triple in triples:
            self._by_relation[triple.relation].append(triple)
            self._by_object[triple.relation, triple.object].append(triple)
            self._by_subject[triple.subject].append(triple)
        for subject in self._by_subject:
            for part in sorted(set(_PART.findall(subject.lower()))):
                self._by_part[part].append(subject)
        self._objects = {
            relation: sorted({t.object for t in listed})
            for relation, listed in self._by_relation.items()
        }

    def problem(self, triple: Triple, *, true: bool) -> str:
        """Return why a triple cannot become a request; empty when it can."""
        if not self._templates.get(triple.relation):
            return f"the relation {triple.relation} has no phrasing that ends in the object."
        if not true and len(self._objects[triple.relation]) <= len(self._truths(triple)):
            return f"the relation {triple.relation} has no other object."
        return ""

    def request(self, triple: Triple, *, id: str, true: bool, seed: int) -> EditRequest:
        """Make the request of a triple with its probes.

        Args:
            triple: A triple without a :meth:`problem`.
            id: The request's name.
            true: Whether the target is the true object instead of another one.
            seed: Decides, together with the triple, everything that is drawn.
        """
        rng = random.Random(f"{seed}\n{triple.relation}\n{triple.subject}\n{triple.object}")
        phrasings = list(self._templates[triple.relation])
        rng.shuffle(phrasings)
        target = triple.object if true else self._other_object(triple, rng)
        return EditRequest(
            id=id,
            prompt=phrasings[0],
            subject=triple.subject,
            relation=triple.relation,
            target_new=target,
            target_true=None if true else triple.object,
            paraphrases=tuple(phrasings[1:]),
            locality=self._locality(triple, phrasings[0], target, rng),
        )

    def _truths(self, triple: Triple) -> set[str]:
        """Return every object the triple's subject has in its relation."""
        mine = self._by_subject[triple.subject]
        return {t.object for t in mine if t.relation == triple.relation}

    def _other_object(self, triple: Triple, rng: random.Random) -> str:
        truths = self._truths(triple)
        return rng.choice([o for o in self._objects[triple.relation] if o not in truths])

    def _locality(
        self, triple: Triple, template: str, target: str, rng: random.Random
    ) -> dict[str, tuple[Probe, ...]]:
        neighbours = [
            Probe(template.replace(SLOT, t.subject), (t.object,), t.object, target)
            for t in self._neighbours(triple, rng)
            if target not in self._truths(t)
        ]
        others = _drawn(
            [t for t in self._by_subject[triple.subject] if t.relation != triple.relation],
            SAME_SUBJECT,
            rng,
        )
        groups = {
            "neighborhood": neighbours,
            "same_subject": [self._probe(t, rng) for t in others],
            "near_name": [self._probe(t, rng) for t in self._near(triple, rng)],
        }
        return {name: tuple(probes) for name, probes in groups.items() if probes}

    def _probe(self, triple: Triple, rng: random.Random) -> Probe:
        template = rng.choice(self._templates[triple.relation])
        return Probe(template.replace(SLOT, triple.subject), (triple.object,))

    def _neighbours(self, triple: Triple, rng: random.Random) -> list[Triple]:
        """Draw subjects with the same object, as CounterFact does; then others of the relation."""
        same = self._by_object[triple.relation, triple.object]
        chosen = _drawn([t for t in same if t.subject != triple.subject], NEIGHBOURS, rng)
        if len(chosen) < NEIGHBOURS:
            subjects = {triple.subject, *(t.subject for t in chosen)}
            rest = [t for t in self._by_relation[triple.relation] if t.subject not in subjects]
            chosen += _drawn(rest, NEIGHBOURS - len(chosen), rng)
        return chosen

    def _near(self, triple: Triple, rng: random.Random) -> list[Triple]:
        """Draw facts of other subjects that share a word of the name."""
        names = sorted(
            {
                name
                for part in _PART.findall(triple.subject.lower())
                for name in self._by_part[part]
                if name != triple.subject
            }
        )
        return [rng.choice(self._by_subject[name]) for name in _drawn(names, NEAR_NAMES, rng)]


def _drawn(items: list[_T], count: int, rng: random.Random) -> list[_T]:
    return rng.sample(items, min(count, len(items)))
