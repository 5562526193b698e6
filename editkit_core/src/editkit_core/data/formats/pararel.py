"""ParaRel-built edits: counterfactual requests made of its triples and its phrasings.

The folder has ``trex_lms_vocab/P*.jsonl`` with (subject, object) pairs and ``graphs_json/P*.jsonl``
with patterns such as ``[X] was born in [Y].``. Only patterns that end in the object can be asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from editkit_core.data.dataset import DataSet
from editkit_core.data.drawing import Entry, Refused, draw
from editkit_core.data.fields import Fields
from editkit_core.data.format import FormInfo, LoadOptions
from editkit_core.data.formats.triples import Triple, Triples
from editkit_core.data.place import Place, Raw, joint_digest
from editkit_core.errors import InputNotFoundError, RequestError, RequestFileError
from editkit_core.types import SLOT

_PAIRS, _PATTERNS = "trex_lms_vocab", "graphs_json"
_FORM = FormInfo(
    name="built",
    about="triples and phrasings made into requests with neighbours, by seed",
    policies={
        "counterfactual": "another object of the relation, drawn by seed",
        "true": "the object of the triple",
    },
)


@attrs.frozen(kw_only=True)
class ParaRel:
    """The format; see ``DataFormat`` for the attributes.

    A request's prompt is one of the relation's usable patterns and its paraphrases are the others;
    neighbours share relation and, where there are enough, the object; other facts of the subject
    and of subjects that share a part of its name should stay, too.

    Source: Elazar et al. 2021, arXiv:2102.01017.
    """

    name: str = "pararel"
    title: str = "ParaRel: triples and phrasings, built into counterfactual requests"
    source: str = "Elazar et al. 2021, arXiv:2102.01017"
    place: str = "FOLDER"
    forms: tuple[FormInfo, ...] = (_FORM,)

    def recognises(self, place: Place) -> bool:
        """Return whether a folder has both parts of ParaRel."""
        return place.path is not None and all(
            (place.path / part).is_dir() for part in (_PAIRS, _PATTERNS)
        )

    def load(self, place: Place, options: LoadOptions) -> DataSet:
        """Build requests of a folder.

        Raises:
            InputNotFoundError: The folder lacks a part, or a file cannot be read.
            RequestFileError: The form is unknown, or no triple has a usable pattern.
            RequestError: A triple does not fit and ``strict`` is set.
        """
        if options.form not in (None, _FORM.name):
            raise RequestFileError(
                f"pararel has no form {options.form!r}. Known: {_FORM.name}.", form=options.form
            )
        policy = _FORM.policy(options.target_policy)
        pairs, patterns = _files(place, _PAIRS), _files(place, _PATTERNS)
        usable = {Path(f.name).stem: tuple(_usable(f)) for f in patterns}
        read = tuple(_triples(pairs))
        triples = Triples(
            [t for _, t in read if isinstance(t, Triple) and usable.get(t.relation)], usable
        )
        entries = (
            _entry(index, found, triples, policy == "true", options.seed) for index, found in read
        )
        drawn = draw(entries, options, total=len(read), name=place.name)
        return DataSet(
            name=self.name,
            form=_FORM.name,
            target_policy=policy,
            digest=joint_digest((*patterns, *pairs)),
            source=place.name,
            limit=options.limit,
            seed=options.seed,
            **attrs.asdict(drawn, recurse=False),
        )


def _files(place: Place, part: str) -> tuple[Place, ...]:
    """Return the files of one part, by name."""
    folder = (place.path or Path()) / part
    paths = sorted(folder.glob("*.jsonl")) if place.path is not None else []
    if not paths:
        raise InputNotFoundError(
            f"{place.text or 'The place'} has no {part}/*.jsonl. Name the folder that holds "
            f"{_PAIRS} and {_PATTERNS}.",
            path=str(folder),
        )
    return tuple(Place(str(path), path, f"{part}/{path.name}") for path in paths)


def _usable(file: Place) -> Iterator[str]:
    """Give the patterns that end in the object, as templates without it."""
    for raw in file.raws:
        if raw.problem:
            raise RequestFileError(f"{file.name}, {raw.problem}", source=file.name)
        pattern = Fields(raw.value).text("pattern").rstrip(" .")
        head, found, tail = pattern.rpartition("[Y]")
        if found and not tail and head.count("[X]") == 1 and SLOT not in head:
            yield head.rstrip().replace("[X]", SLOT)


def _triples(files: Sequence[Place]) -> Iterator[tuple[int, Triple | RequestError]]:
    index = 0
    for file in files:
        relation = Path(file.name).stem
        for raw in file.raws:
            yield index, _triple(raw, relation, file.name)
            index += 1


def _triple(raw: Raw, relation: str, name: str) -> Triple | RequestError:
    try:
        if raw.problem:
            raise RequestFileError(f"{name}, {raw.problem}")
        record = Fields(raw.value)
        return Triple(
            relation=relation,
            subject=record.word("sub_label"),
            object=record.target("obj_label"),
            id=record.word("uuid") if "uuid" in record else "",
        )
    except RequestError as error:
        return error


def _entry(
    index: int, found: Triple | RequestError, triples: Triples, true: bool, seed: int
) -> Entry | Refused:
    if isinstance(found, RequestError):
        return Refused(index, found)
    problem = triples.problem(found, true=true)
    if problem:
        return Refused(index, RequestFileError(problem, relation=found.relation))
    return Entry(
        index,
        found.id,
        lambda: (triples.request(found, id=found.id or f"#{index}", true=true, seed=seed),),
    )
