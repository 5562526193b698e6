"""ROME's known facts: prompts that GPT-2 XL answers correctly, for causal tracing."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from editkit_core.data.drawing import Entry, Refused
from editkit_core.data.fields import Fields
from editkit_core.data.file_format import FileFormat, Form, Making, read_one
from editkit_core.data.place import Raw
from editkit_core.errors import EditkitError, RequestFileError
from editkit_core.types import EditRequest

TRUE, COUNTERFACTUAL = "true", "counterfactual"


def known_1000() -> FileFormat:
    """Return the format.

    ``prompt`` is used and not ``template``, which is often shorter and then does not lead to the
    attribute.

    Source: Meng et al. 2022, arXiv:2202.05262.
    """
    return FileFormat(
        name="known_1000",
        title="Known facts: prompts for causal tracing",
        source="Meng et al. 2022, arXiv:2202.05262",
        forms=(
            Form(
                name="facts",
                about="known_id, subject, attribute, prompt, relation_id",
                policies={
                    TRUE: "the attribute, which the model is expected to know",
                    COUNTERFACTUAL: "another attribute of the same relation, drawn by seed",
                },
                fits=lambda record, _: {"subject", "attribute", "prompt"} <= set(record),
                read=_read,
            ),
        ),
    )


def _read(raws: Sequence[Raw], making: Making) -> Iterator[Entry | Refused]:
    attributes = _attributes(raws)
    for raw in raws:
        yield read_one(raw, partial(_request, attributes=attributes), making, "known_id")


def _attributes(raws: Sequence[Raw]) -> Mapping[str, Sequence[str]]:
    """Return the attributes of each relation, sorted."""
    found = defaultdict(set)
    for raw in raws:
        try:
            record = Fields(raw.value)
            found[_relation(record)].add(record.target("attribute"))
        except EditkitError:
            continue  # told when the record itself is read
    return {relation: sorted(values) for relation, values in found.items()}


def _relation(record: Fields) -> str:
    return record.word("relation_id") if "relation_id" in record else ""


def _request(
    record: Fields, making: Making, attributes: Mapping[str, Sequence[str]]
) -> tuple[EditRequest, ...]:
    true, relation = record.target("attribute"), _relation(record)
    subject = record.word("subject")
    new, old = true, None
    if making.policy == COUNTERFACTUAL:
        others = [value for value in attributes[relation] if value != true]
        if not others:
            raise RequestFileError(f"no other attribute of the relation {relation!r} is known.")
        new = random.Random(f"{making.seed}\n{subject}\n{relation}\n{true}").choice(others)
        old = true
    return (
        EditRequest(
            prompt=record.text("prompt"),
            subject=subject,
            target_new=new,
            target_true=old,
            relation=relation or None,
        ),
    )
