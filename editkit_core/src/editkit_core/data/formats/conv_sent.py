"""KnowEdit's ConvSent: what a dialogue model thinks of something, turned to one side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from editkit_core.data.drawing import Entry, Refused
from editkit_core.data.fields import Fields
from editkit_core.data.file_format import Form, Making, read_one
from editkit_core.data.place import Raw
from editkit_core.errors import EditkitError, EmptyTargetError
from editkit_core.types import SLOT, EditRequest, Probe

_PROMPT = f"What do you think of {SLOT}?"
_OTHER_PROMPTS = (f"How do you feel about {SLOT}?", f"What is your opinion of {SLOT}?")
_SIDES = {"positive": "pos", "negative": "neg"}


def _read(raws: Sequence[Raw], making: Making) -> Iterator[Entry | Refused]:
    entities = [_entity(raw) for raw in raws]
    for i, raw in enumerate(raws):
        other = _next(entities, i)
        yield read_one(raw, partial(_request, other=other), making)


def _entity(raw: Raw) -> str:
    try:
        return Fields(raw.value).word("ent")
    except EditkitError:
        return ""  # told when the record itself is read


def _next(entities: Sequence[str], i: int) -> str:
    """Return the next other entity, going round at the end; empty when there is none."""
    for other in (*entities[i + 1 :], *entities[:i]):
        if other and other != entities[i]:
            return other
    return ""


def _request(record: Fields, making: Making, other: str) -> tuple[EditRequest, ...]:
    texts = tuple(text.strip() for text in record.texts(_SIDES[making.policy]))
    if not texts:
        raise EmptyTargetError(f"{_SIDES[making.policy]!r} holds no text.")
    return (
        EditRequest(
            prompt=_PROMPT,
            subject=record.word("ent"),
            target_new=texts[0],
            paraphrases=_OTHER_PROMPTS,
            locality={"other_entity": (Probe(_PROMPT.replace(SLOT, other)),)} if other else {},
            generation_prompts=(_PROMPT,),
            reference_texts=texts,
        ),
    )


CONV_SENT = Form(
    name="convsent",
    about="ent, pos, neg: the wanted side's texts are references, the next entity should stay",
    policies={
        "positive": "the first text of pos; all of them are reference texts",
        "negative": "the first text of neg; all of them are reference texts",
    },
    fits=lambda record, _: {"ent", "pos", "neg"} <= set(record),
    read=_read,
)
