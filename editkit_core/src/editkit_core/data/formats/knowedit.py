"""KnowEdit: six tasks in one collection, each with fields of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from editkit_core.data.fields import Fields
from editkit_core.data.file_format import FileFormat, Form, Making, one_by_one
from editkit_core.data.formats.conv_sent import CONV_SENT
from editkit_core.data.formats.counterfact import COUNTERFACTUAL
from editkit_core.data.formats.sanitation import SANITATION
from editkit_core.types import EditRequest, Probe


def knowedit() -> FileFormat:
    """Return the format.

    Probe types keep KnowEdit's names in lower case: ``relation_specificity`` (other relations of
    the subject) and ``forgetfulness`` stay; ``reasoning``, ``subject_aliasing`` and
    ``logical_generalization`` follow. Answers, which may be lists in lists, become one flat list.
    A probe that should stay and has no answer is measured against what the model says itself; one
    that should follow and has none is left out.

    Source: Zhang et al. 2024, arXiv:2401.01286.
    """
    return FileFormat(
        name="knowedit",
        title="KnowEdit: wiki_recent, wiki_counterfact, WikiBio, ConvSent, Sanitation, ZsRE",
        source="Zhang et al. 2024, arXiv:2401.01286",
        forms=(
            Form(
                name="wiki_counterfact",
                about="prompt, subject, target_new, ground_truth, portability, locality",
                policies=COUNTERFACTUAL,
                fits=lambda record, _: _is_wiki(record) and "ground_truth" in record,
                read=one_by_one(_wiki),
            ),
            Form(
                name="wiki_recent",
                about="the same without ground_truth: facts that are newer than the model",
                policies={"recent": "the new true object, target_new"},
                fits=lambda record, _: _is_wiki(record) and "ground_truth" not in record,
                read=one_by_one(_wiki),
            ),
            Form(
                name="zsre",
                about="prompt, subject, target_new, ground_truth, rephrase_prompt, cond",
                policies=COUNTERFACTUAL,
                fits=lambda record, _: {"prompt", "rephrase_prompt", "cond"} <= set(record),
                read=one_by_one(_wiki),
            ),
            Form(
                name="wikibio",
                about="text, labels, concept, locality: a biography goes on with a true sentence",
                policies={"true": "the sentence in labels"},
                fits=lambda record, _: {"text", "labels", "concept"} <= set(record),
                read=one_by_one(_biography),
            ),
            CONV_SENT,
            SANITATION,
        ),
    )


def _is_wiki(record: Mapping[str, Any]) -> bool:  # Any: JSON values
    """Whether the probes are KnowEdit's; those of our own records have ``answers``."""
    if not {"prompt", "subject", "target_new", "locality"} <= set(record) or "cond" in record:
        return False
    return any(
        isinstance(probe, Mapping) and "ground_truth" in probe
        for group in (record["locality"], record.get("portability"))
        for probes in (group.values() if isinstance(group, Mapping) else ())
        for probe in (probes if isinstance(probes, list) else ())
    )


def _wiki(record: Fields, making: Making) -> tuple[EditRequest, ...]:
    return (
        EditRequest(
            prompt=record.text("prompt"),
            subject=record.word("subject"),
            target_new=record.target("target_new"),
            target_true=next(iter(record.answers("ground_truth")), None),
            paraphrases=(record.text("rephrase_prompt"),) if "rephrase_prompt" in record else (),
            locality=_probes(record, "locality", making, needs_answers=False),
            portability=_probes(record, "portability", making, needs_answers=True),
        ),
    )


def _biography(record: Fields, making: Making) -> tuple[EditRequest, ...]:
    return (
        EditRequest(
            prompt=record.text("text"),
            subject=record.word("concept"),
            target_new=record.target("labels"),
            locality=_probes(record, "locality", making, needs_answers=False),
        ),
    )


def _probes(
    record: Fields, name: str, making: Making, *, needs_answers: bool
) -> dict[str, tuple[Probe, ...]]:
    if name not in record:
        return {}
    groups = record.inner(name)
    made: dict[str, tuple[Probe, ...]] = {}
    for kind in groups.names():
        probes = [Probe(p.text("prompt"), p.answers("ground_truth")) for p in groups.inners(kind)]
        kept = tuple(probe for probe in probes if probe.answers or not needs_answers)
        if len(kept) < len(probes):
            making.left_out.append(f"{len(probes) - len(kept)} of {name}.{kind} have no answer")
        if kept:
            made[kind.lower()] = kept
    return made
