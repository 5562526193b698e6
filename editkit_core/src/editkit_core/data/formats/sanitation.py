"""KnowEdit's Sanitation: answers to forget, and answers to keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from editkit_core.data.drawing import Entry, Refused
from editkit_core.data.fields import Fields
from editkit_core.data.file_format import Form, Making, read_one
from editkit_core.data.place import Raw
from editkit_core.errors import RequestError
from editkit_core.types import EditRequest, Probe

_FORGET, _KEEP = "K_F", "K_R"


def _read(raws: Sequence[Raw], making: Making) -> Iterator[Entry | Refused]:
    """Give a request a forgotten answer; the kept questions go round, each to one request."""
    forgotten = [raw for raw in raws if raw.part != _KEEP]
    kept, refused = _kept([raw for raw in raws if raw.part == _KEEP])
    for i, raw in enumerate(forgotten):
        mine = kept[i :: len(forgotten)]
        yield read_one(raw, partial(_request, kept=mine), making)
    yield from refused


def _kept(raws: Sequence[Raw]) -> tuple[tuple[Probe, ...], list[Refused]]:
    probes, refused = [], []
    for raw in raws:
        try:
            record = Fields(raw.value)
            probes.append(Probe(record.text("question"), record.answers("ground_truth")))
        except RequestError as error:
            refused.append(Refused(raw.index, error))
    return tuple(probes), refused


def _request(record: Fields, making: Making, kept: tuple[Probe, ...]) -> tuple[EditRequest, ...]:
    return (
        EditRequest(
            prompt=record.text("question"),
            subject=record.word("subject"),
            target_new=record.target("target_new"),
            target_true=next(iter(record.answers("ground_truth")), None),
            locality={"retained": kept} if kept else {},
        ),
    )


SANITATION = Form(
    name="sanitation",
    about="K_F to forget and K_R to keep: question, subject, ground_truth, target_new",
    policies={"refusal": "target_new, a refusal to answer"},
    fits=lambda record, part: part in (_FORGET, _KEEP) and "question" in record,
    read=_read,
    parts=(_FORGET, _KEEP),
)
