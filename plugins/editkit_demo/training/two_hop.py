"""Write `two_hop.csv`: prompts that need two facts, a quarter of them never trained.

A chain runs forward (Marie Curie -> born in Poland -> its capital) or through a reversed
first fact (Warsaw -> capital of Poland -> its currency). Whether a second fact is held out
depends on that fact alone, so that it is missing from every chain that would end in it.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

from editkit_demo.facts import Fact, TwoHop, load_facts

_ASKED = {
    "capital": "capital",
    "continent": "continent",
    "currency": "currency",
    "language": "official language",
}
_BRIDGES = {
    "birthplace": "the country where {} was born",
    "headquarters": "the country where {} is based",
}
_REVERSED = "the country whose capital is {}"
_ARTICLE = ("currency",)
_HELD_OUT_PERCENT = 25
_COLUMNS = (
    "prompt",
    "subject",
    "first_subject",
    "first_relation",
    "first_object",
    "second_subject",
    "second_relation",
    "answer",
    "held_out",
)


def two_hops(facts: tuple[Fact, ...]) -> Iterator[TwoHop]:
    """Yield every chain that the facts allow."""
    by_subject = {(fact.subject, fact.relation): fact for fact in facts}
    for first in facts:
        if first.relation in _BRIDGES:
            bridge, subject, country = _BRIDGES[first.relation], first.subject, first.object
        elif first.relation == "capital":
            bridge, subject, country = _REVERSED, first.object, first.subject
        else:
            continue
        for relation, name in _ASKED.items():
            second = by_subject.get((country, relation))
            if second is None or (first.relation == "capital" == relation):
                continue
            the = " the" if relation in _ARTICLE else ""
            yield TwoHop(
                prompt=f"The {name} of {bridge.format(subject)} is{the}",
                subject=subject,
                first=first,
                second=second,
                answer=second.object,
                held_out=is_held_out(second),
            )


def is_held_out(second: Fact) -> bool:
    """Tell whether a fact is never trained as the second hop of a chain."""
    digest = hashlib.sha256(f"second hop\n{second.subject}\n{second.relation}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < _HELD_OUT_PERCENT


def main() -> None:
    """Write the table next to the facts."""
    path = Path(__file__).parents[1] / "src/editkit_demo/data/two_hop.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for hop in two_hops(load_facts()):
            first, second = hop.first, hop.second
            writer.writerow(
                [
                    hop.prompt,
                    hop.subject,
                    first.subject,
                    first.relation,
                    first.object,
                    second.subject,
                    second.relation,
                    hop.answer,
                    "yes" if hop.held_out else "no",
                ]
            )


if __name__ == "__main__":
    main()
