"""Formats whose file is a list of records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from editkit_core.data.dataset import DataSet
from editkit_core.data.drawing import Entry, Refused, draw
from editkit_core.data.fields import Fields
from editkit_core.data.format import FormInfo, LoadOptions
from editkit_core.data.place import Place, Raw, joint_digest
from editkit_core.errors import RequestError, RequestFileError, did_you_mean
from editkit_core.types import EditRequest

_SAMPLE = 50


@attrs.define
class Making:
    """What a record's requests depend on besides the record.

    Attributes:
        policy: The target policy.
        seed: Decides every choice.
        beside: The records of the file that lies beside, where there is one.
        left_out: Why probes of the record were left out.
    """

    policy: str
    seed: int
    beside: Sequence[Raw] = ()
    left_out: list[str] = attrs.field(factory=list)


Convert = Callable[[Fields, Making], Sequence[EditRequest]]
Read = Callable[[Sequence[Raw], Making], Iterator[Entry | Refused]]


@attrs.frozen(kw_only=True)
class Form(FormInfo):
    """A form of a format and how it is read.

    Attributes:
        fits: Whether a record looks like this form.
        read: Gives what can be used and what cannot, in file order.
        parts: Names of the lists that a file of this form holds, when it is not one list.
        beside: Name of a second file that may lie in the same folder and is then read, too.
    """

    fits: Callable[[Mapping[str, Any], str], bool]  # Any: JSON values
    read: Read
    parts: tuple[str, ...] = ()
    beside: str = ""


@attrs.frozen(kw_only=True)
class FileFormat:
    """A format whose file is a list of records; see ``DataFormat`` for the attributes."""

    name: str
    title: str
    source: str
    forms: tuple[Form, ...]
    place: str = "FILE"

    def recognises(self, place: Place) -> bool:
        """Return whether a file looks like this format."""
        return not place.is_folder and self._form_of(place) is not None

    def load(self, place: Place, options: LoadOptions) -> DataSet:
        """Load a file.

        Raises:
            InputNotFoundError: The file cannot be read.
            RequestFileError: It is not of this format.
            RequestError: A record does not fit and ``strict`` is set.
        """
        form = self._form(place, options.form)
        _check_parts(place, form)
        policy = form.policy(options.target_policy)
        second = place.beside(form.beside) if form.beside else None
        making = Making(
            policy=policy, seed=options.seed, beside=() if second is None else second.raws
        )
        drawn = draw(form.read(place.raws, making), options, total=len(place.raws), name=place.name)
        return DataSet(
            name=self.name,
            form=form.name,
            target_policy=policy,
            digest=place.digest if second is None else joint_digest([place, second]),
            source=place.name if second is None else f"{place.name} with {second.name}",
            limit=options.limit,
            seed=options.seed,
            **attrs.asdict(drawn, recurse=False),
        )

    def _form(self, place: Place, wanted: str | None) -> Form:
        if wanted is not None:
            return _named(self, wanted)
        form = self._form_of(place)
        if form is None:
            raise RequestFileError(
                f"{place.name} does not look like {self.name}: {_seen(place.raws)}. Check the "
                "format; a bare path lets editkit recognise it.",
                source=place.name,
                format=self.name,
            )
        return form

    def _form_of(self, place: Place) -> Form | None:
        """Return the form that most of the first records look like; the first one of equals."""
        sample = [raw for raw in place.raws if isinstance(raw.value, Mapping)][:_SAMPLE]
        votes = [sum(form.fits(raw.value, raw.part) for raw in sample) for form in self.forms]
        best = max(votes, default=0)
        return self.forms[votes.index(best)] if best else None


def _named(known: FileFormat, wanted: str) -> Form:
    for form in known.forms:
        if form.name == wanted:
            return form
    names = [form.name for form in known.forms]
    raise RequestFileError(
        f"{known.name} has no form {wanted!r}.{did_you_mean(wanted, names)} Known: "
        f"{', '.join(names)}.",
        form=wanted,
    )


def _check_parts(place: Place, form: Form) -> None:
    """Refuse several lists by name, such as splits, which nobody asked to be joined."""
    parts = sorted({raw.part for raw in place.raws})
    if len(parts) > 1 and not set(parts) <= set(form.parts):
        raise RequestFileError(
            f"{place.name} holds several lists: {', '.join(parts)}. Keep the one to be used in a "
            "file of its own.",
            source=place.name,
            parts=tuple(parts),
        )


def _seen(raws: Sequence[Raw]) -> str:
    first = raws[0]
    if first.problem:
        return first.problem.rstrip(".")
    if not isinstance(first.value, Mapping):
        return f"its first record is {type(first.value).__name__}"
    return f"its first record has {', '.join(map(str, list(first.value)[:8])) or 'nothing'}"


def one_by_one(convert: Convert, *, id_field: str | None = None) -> Read:
    """Return a reader that makes the requests of each record from that record alone.

    Args:
        convert: Makes a record's requests; a ``RequestError`` it raises is the record's misfit.
        id_field: The field with the record's name; None when records have none.
    """

    def read(raws: Sequence[Raw], making: Making) -> Iterator[Entry | Refused]:
        for raw in raws:
            yield read_one(raw, convert, making, id_field)

    return read


def read_one(
    raw: Raw, convert: Convert, making: Making, id_field: str | None = None
) -> Entry | Refused:
    """Make the requests of one record, or say why not."""
    own = attrs.evolve(making, left_out=[])
    try:
        if raw.problem:
            raise RequestFileError(raw.problem)
        fields = Fields(raw.value)
        id = fields.label(id_field) if id_field is not None and id_field in fields else ""
        made = tuple(_with_ids(convert(fields, own), id or position(raw.index)))
    except RequestError as error:
        return Refused(raw.index, error)
    return Entry(raw.index, id, lambda: made, tuple(own.left_out))


def position(index: int) -> str:
    """Return the id of a request whose record has none."""
    return f"#{index}"


def _with_ids(requests: Iterable[EditRequest], id: str) -> Iterator[EditRequest]:
    listed = list(requests)
    for i, request in enumerate(listed):
        own = id if len(listed) == 1 else f"{id}/{i}"
        yield request if request.id else attrs.evolve(request, id=own)
