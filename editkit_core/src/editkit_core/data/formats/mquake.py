"""MQuAKE: questions over several facts, of which some or all are edited together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from editkit_core.data.fields import Fields
from editkit_core.data.file_format import FileFormat, Form, Making, one_by_one
from editkit_core.data.formats.counterfact import COUNTERFACTUAL, present
from editkit_core.errors import RequestFileError
from editkit_core.types import EditRequest, Probe


def mquake() -> FileFormat:
    """Return the format.

    One case gives one request an edited fact; they share a ``group``, because its questions hold
    only when all of them are edited. The questions and the single hops stand with the group's
    first request, whose subject begins the chain. A limit draws cases.

    Source: Zhong et al. 2023, arXiv:2305.14795.
    """
    return FileFormat(
        name="mquake",
        title="MQuAKE: multi-hop questions over edited facts",
        source="Zhong et al. 2023, arXiv:2305.14795",
        forms=(
            Form(
                name="cases",
                about="requested_rewrite (a list), questions, new_answer, new_single_hops",
                policies=COUNTERFACTUAL,
                fits=_fits,
                read=one_by_one(_case, id_field="case_id"),
            ),
        ),
    )


def _fits(record: Mapping[str, Any], _: str) -> bool:  # Any: JSON values
    return isinstance(record.get("requested_rewrite"), list) and "questions" in record


def _case(record: Fields, making: Making) -> Sequence[EditRequest]:
    rewrites = record.inners("requested_rewrite")
    if not rewrites:
        raise RequestFileError("'requested_rewrite' is empty.", field="requested_rewrite")
    group = record.label("case_id")
    portability = present({"multi_hop": _questions(record), "single_hop": _hops(record)})
    return [
        _edit(rewrite, group if len(rewrites) > 1 else "", {} if i else portability)
        for i, rewrite in enumerate(rewrites)
    ]


def _edit(rewrite: Fields, group: str, portability: Mapping[str, tuple[Probe, ...]]) -> EditRequest:
    return EditRequest(
        prompt=rewrite.text("prompt"),
        subject=rewrite.word("subject"),
        target_new=rewrite.inner("target_new").target("str"),
        target_true=rewrite.inner("target_true").target("str"),
        relation=rewrite.word("relation_id") if "relation_id" in rewrite else None,
        paraphrases=(rewrite.text("question"),) if "question" in rewrite else (),
        portability=portability,
        group=group,
    )


def _questions(record: Fields) -> tuple[Probe, ...]:
    new = record.word("new_answer")
    old = record.word("answer") if "answer" in record else None
    answers = (new, *(alias for alias in record.answers("new_answer_alias") if alias != new))
    pair = (old, new) if old is not None else (None, None)
    return tuple(Probe(question, answers, *pair) for question in record.texts("questions"))


def _hops(record: Fields) -> tuple[Probe, ...]:
    return tuple(
        Probe(hop.text("question"), (*hop.answers("answer"), *hop.answers("answer_alias")))
        for hop in record.inners("new_single_hops")
    )
