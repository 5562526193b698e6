"""zsRE: questions of relation extraction, with another answer or with the true one."""

from __future__ import annotations

from editkit_core.data.fields import Fields
from editkit_core.data.file_format import FileFormat, Form, Making, one_by_one
from editkit_core.data.formats.counterfact import one_hop, present
from editkit_core.errors import EmptyTargetError
from editkit_core.types import EditRequest, Probe

COUNTERFACTUAL, TRUE = "counterfactual", "true"


def zsre() -> FileFormat:
    """Return the format: MEND's fields, and EasyEdit's files that add one more question.

    Two lines of papers insert different answers: EasyEdit the counterfactual ``alt``, ROME and
    MEMIT the true ``answers[0]``. The policy says which. Questions that follow only from ``alt``
    (one hop, inverse) are left out under ``true``.

    Source: Levy et al. 2017; split and fields of Mitchell et al. 2021, arXiv:2110.11309.
    """
    return FileFormat(
        name="zsre",
        title="zsRE: questions with a rephrasing and an unrelated question",
        source="Levy et al. 2017; Mitchell et al. 2021, arXiv:2110.11309",
        forms=(
            Form(
                name="mend",
                about="src, subject, alt, answers, rephrase, loc; with one more question",
                policies={
                    COUNTERFACTUAL: "alt, as EasyEdit does",
                    TRUE: "the first of answers, as ROME and MEMIT do",
                },
                fits=lambda record, _: {"src", "alt"} <= set(record),
                read=one_by_one(_request),
            ),
        ),
    )


def _request(record: Fields, making: Making) -> tuple[EditRequest, ...]:
    answers = record.answers("answers")
    true = making.policy == TRUE
    new = _first(answers) if true else record.target("alt")
    return (
        EditRequest(
            prompt=record.text("src"),
            subject=record.word("subject"),
            target_new=new,
            target_true=None if true else next(iter(answers), None),
            paraphrases=(record.text("rephrase"),) if "rephrase" in record else (),
            locality=present({"neighborhood": _unrelated(record, new)}),
            portability=present(_following(record, new, making)),
        ),
    )


def _first(answers: tuple[str, ...]) -> str:
    if not answers:
        raise EmptyTargetError("'answers' holds no answer.", field="answers")
    return answers[0]


def _unrelated(record: Fields, new: str) -> tuple[Probe, ...]:
    if "loc" not in record:
        return ()
    kept = record.answers("loc_ans")
    pair = (kept[0], new) if kept else (None, None)
    return (Probe(record.text("loc"), kept, *pair),)


def _following(record: Fields, new: str, making: Making) -> dict[str, tuple[Probe, ...]]:
    portability = {"one_hop": one_hop(record), "inverse": _inverse(record)}
    if making.policy == TRUE:
        making.left_out += [
            f"the {name} question follows only from the counterfactual answer"
            for name, probes in portability.items()
            if probes
        ]
        portability = {}
    if "alter_subject_question" in record:
        portability["subject_aliasing"] = (Probe(record.text("alter_subject_question"), (new,)),)
    return portability


def _inverse(record: Fields) -> tuple[Probe, ...]:
    if "inverse question" not in record:
        return ()
    return (Probe(record.text("inverse question"), (record.word("subject"),)),)
