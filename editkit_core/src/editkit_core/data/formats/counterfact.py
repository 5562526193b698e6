"""CounterFact: facts with a false object of the right kind, in its full and its short form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from editkit_core.data.drawing import Entry, Refused
from editkit_core.data.fields import Fields
from editkit_core.data.file_format import FileFormat, Form, Making, one_by_one
from editkit_core.data.place import Raw
from editkit_core.errors import RequestError, RequestFileError
from editkit_core.types import SLOT, EditRequest, Probe

COUNTERFACTUAL = {"counterfactual": "the false object, target_new"}


def counterfact() -> FileFormat:
    """Return the format.

    The full form has two paraphrases, ten neighbours with the old object, ten attribute prompts
    with the new one, and ten prompts to continue. Distributed variants of it add a one-hop
    question (``portability``), neighbours after the edited sentence
    (``distracting_neighborhood_prompts``), a question about another relation of the subject
    (``unrelated_relation``) or another name of it (``alternative_subject``).

    Where ROME's ``attribute_snippets.json`` lies beside a file of the full form, its texts about
    the new object become the reference texts that free continuations are compared with.

    The short form's ``rephrase_prompt`` is mostly a prompt to continue and no paraphrase, so it is
    a portability probe of its own type and counts towards no generalization score.

    Source: Meng et al. 2022, arXiv:2202.05262; the short form is EasyEdit's.
    """
    return FileFormat(
        name="counterfact",
        title="CounterFact: counterfactual objects of Wikidata facts",
        source="Meng et al. 2022, arXiv:2202.05262",
        forms=(
            Form(
                name="full",
                about="requested_rewrite with paraphrase, neighborhood and generation prompts",
                policies=COUNTERFACTUAL,
                fits=lambda record, _: isinstance(record.get("requested_rewrite"), Mapping),
                read=_read_full,
                beside="attribute_snippets.json",
            ),
            Form(
                name="short",
                about="prompt, subject, target_new, ground_truth, rephrase and locality prompt",
                policies=COUNTERFACTUAL,
                fits=_is_short,
                read=one_by_one(_short, id_field="case_id"),
            ),
        ),
    )


def _is_short(record: Mapping[str, Any], _: str) -> bool:  # Any: JSON values
    return {"rephrase_prompt", "locality_prompt", "locality_ground_truth"} <= set(record)


def _read_full(raws: Sequence[Raw], making: Making) -> Iterator[Entry | Refused]:
    convert = partial(_full, references=_references(making.beside))
    yield from one_by_one(convert, id_field="case_id")(raws, making)


def _references(snippets: Sequence[Raw]) -> Mapping[tuple[str, str], tuple[str, ...]]:
    """Return texts about an object, by relation and the object's id.

    Raises:
        RequestFileError: The file of snippets has other fields.
    """
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for raw in snippets:
        try:
            entry = Fields(raw.value)
            key = (entry.word("relation_id"), entry.word("target_id"))
            found[key] = tuple(sample.text("text") for sample in entry.inners("samples"))
        except RequestError as error:
            raise RequestFileError(
                f"attribute_snippets.json, entry {raw.index} (counted from 0): {error.message} Get "
                "it again, or take it out of the folder.",
                index=raw.index,
            ) from error
    return found


def _full(
    record: Fields, making: Making, references: Mapping[tuple[str, str], tuple[str, ...]]
) -> tuple[EditRequest, ...]:
    rewrite = record.inner("requested_rewrite")
    prompt, subject = rewrite.text("prompt"), rewrite.word("subject")
    new = rewrite.inner("target_new").target("str")
    true = rewrite.inner("target_true").target("str")

    relation = rewrite.word("relation_id") if "relation_id" in rewrite else None
    new_id = rewrite.inner("target_new").word("id") if "id" in rewrite.inner("target_new") else ""

    def kept(name: str) -> tuple[Probe, ...]:
        return tuple(Probe(text, (true,), true, new) for text in record.texts(name))

    locality = {
        "neighborhood": kept("neighborhood_prompts"),
        "distracting": kept("distracting_neighborhood_prompts"),
        "same_subject": _unrelated(record),
    }
    portability = {
        "one_hop": one_hop(record),
        "subject_aliasing": _alias(record, prompt, new),
    }
    return (
        EditRequest(
            prompt=prompt,
            subject=subject,
            target_new=new,
            target_true=true,
            relation=relation,
            paraphrases=record.texts("paraphrase_prompts"),
            locality=present(locality),
            portability=present(portability),
            generation_prompts=record.texts("generation_prompts"),
            attribute_prompts=tuple(
                Probe(text, (new,), true, new) for text in record.texts("attribute_prompts")
            ),
            reference_texts=references.get((relation or "", new_id), ()),
        ),
    )


def _short(record: Fields, making: Making) -> tuple[EditRequest, ...]:
    new, true = record.target("target_new"), record.target("ground_truth")
    kept = record.word("locality_ground_truth")
    return (
        EditRequest(
            prompt=record.text("prompt"),
            subject=record.word("subject"),
            target_new=new,
            target_true=true,
            locality={"neighborhood": (Probe(record.text("locality_prompt"), (kept,), kept, new),)},
            portability={
                "rephrase_prompt": (Probe(record.text("rephrase_prompt"), (new,), true, new),)
            },
        ),
    )


def _unrelated(record: Fields) -> tuple[Probe, ...]:
    if "unrelated_relation" not in record:
        return ()
    other = record.inner("unrelated_relation")
    return (Probe(other.text("question"), other.answers("object")),)


def _alias(record: Fields, prompt: str, new: str) -> tuple[Probe, ...]:
    if "alternative_subject" not in record:
        return ()
    return (Probe(prompt.replace(SLOT, record.word("alternative_subject")), (new,)),)


def one_hop(record: Fields) -> tuple[Probe, ...]:
    """Return the probe of EasyEdit's one-hop form, which names its fields with spaces."""
    if "portability" not in record:
        return ()
    hop = record.inner("portability")
    return (Probe(hop.text("New Question"), (hop.word("New Answer"),)),)


def present(groups: Mapping[str, tuple[Probe, ...]]) -> dict[str, tuple[Probe, ...]]:
    """Return the probe types that have probes."""
    return {name: probes for name, probes in groups.items() if probes}
