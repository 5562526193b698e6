"""Each format's fields, from small files written for these tests to hand-written requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data_files as files
import pytest

from editkit_core import EditRequest, Probe
from editkit_core.data import DataSet, load_dataset
from editkit_core.errors import InvalidParameterError, InvalidRequestError, RequestFileError


def loaded(folder: Path, name: str, value: Any, **options: Any) -> DataSet:
    return load_dataset(f"{name}:{files.write(folder, 'data.json', value)}", **options)


def test_counterfact_full_keeps_every_prompt_in_its_own_place(tmp_path: Path) -> None:
    data = loaded(tmp_path, "counterfact", [files.FULL])
    assert (data.form, data.target_policy) == ("full", "counterfactual")

    def kept(prompt: str) -> Probe:
        return Probe(prompt, ("Oslo",), "Oslo", "Lima")

    assert data.requests == (
        EditRequest(
            id="7",
            prompt="{} paints in",
            subject="Ada Berg",
            target_new="Lima",
            target_true="Oslo",
            relation="P1",
            paraphrases=(
                "It rained. Ada Berg has a studio in",
                "The city where Ada Berg paints:",
            ),
            locality={
                "neighborhood": (kept("Nils Dahl paints in"), kept("Eva Lund paints in")),
                "distracting": (kept("Ada Berg paints in Lima. Nils Dahl paints in"),),
                "same_subject": (Probe("What does Ada Berg speak?", ("Norwegian",)),),
            },
            portability={
                "one_hop": (Probe("Which river does Ada Berg see from her studio?", ("Rimac",)),),
                "subject_aliasing": (Probe("A. Berg paints in", ("Lima",)),),
            },
            generation_prompts=("Ada Berg likes to walk to",) * 2,
            attribute_prompts=(Probe("Rosa Paz paints in", ("Lima",), "Oslo", "Lima"),),
        ),
    )


def test_counterfact_shorts_rephrase_prompt_is_not_scored_as_a_paraphrase(tmp_path: Path) -> None:
    data = loaded(tmp_path, "counterfact", [files.SHORT])
    assert data.form == "short"
    assert data.requests == (
        EditRequest(
            id="3",
            prompt="Ada Berg paints in",
            subject="Ada Berg",
            target_new="Lima",
            target_true="Oslo",
            locality={
                "neighborhood": (Probe("Nils Dahl paints in", ("Oslo",), "Oslo", "Lima"),),
            },
            portability={
                "rephrase_prompt": (Probe("Ada Berg likes to walk to", ("Lima",), "Oslo", "Lima"),)
            },
        ),
    )


def zsre(**changes: Any) -> EditRequest:
    new = changes.get("target_new", "Lima")
    fields: dict[str, Any] = {
        "id": "#0",
        "prompt": "Which city does Ada Berg paint in?",
        "subject": "Ada Berg",
        "target_new": "Lima",
        "target_true": "Oslo",
        "paraphrases": ("Where is Ada Berg's studio?",),
        "locality": {
            "neighborhood": (
                Probe(
                    "nq question: who wrote the waves", ("Virginia Woolf",), "Virginia Woolf", new
                ),
            )
        },
    }
    return EditRequest(**(fields | changes))


@pytest.mark.parametrize(
    ("record", "portability"),
    [
        (files.ZSRE, {}),
        (
            files.ZSRE_ONE_HOP,
            {"one_hop": (Probe("Which river does Ada Berg see from her studio?", ("Rimac",)),)},
        ),
        (files.ZSRE_INVERSE, {"inverse": (Probe("Who paints in Lima?", ("Ada Berg",)),)}),
        (
            files.ZSRE_ALIAS,
            {"subject_aliasing": (Probe("Which city does A. Berg paint in?", ("Lima",)),)},
        ),
    ],
)
def test_zsre_takes_alt_as_the_counterfactual_target(
    tmp_path: Path, record: dict[str, Any], portability: dict[str, Any]
) -> None:
    data = loaded(tmp_path, "zsre", [record])
    assert data.target_policy == "counterfactual"
    assert data.requests == (zsre(portability=portability),)


def test_zsre_with_the_true_policy_inserts_the_first_answer(tmp_path: Path) -> None:
    data = loaded(tmp_path, "zsre", [files.ZSRE], target_policy="true")
    assert data.target_policy == "true"
    assert data.requests == (zsre(target_new="Oslo", target_true=None),)


def test_questions_that_follow_only_from_alt_are_left_out_under_the_true_policy(
    tmp_path: Path,
) -> None:
    records = [files.ZSRE_ONE_HOP, files.ZSRE_INVERSE, files.ZSRE_ALIAS]
    data = loaded(tmp_path, "zsre", records, target_policy="true")
    assert [list(r.portability) for r in data.requests] == [[], [], ["subject_aliasing"]]
    assert data.requests[2].portability["subject_aliasing"][0].answers == ("Oslo",)
    assert [(s.index, s.reason.split()[1]) for s in data.left_out] == [
        (0, "one_hop"),
        (1, "inverse"),
    ]


def test_zsre_without_a_true_answer_is_skipped_under_the_true_policy(tmp_path: Path) -> None:
    records = [files.ZSRE, files.but(files.ZSRE, answers=[])]
    assert loaded(tmp_path, "zsre", records).skipped == ()
    (skipped,) = loaded(tmp_path, "zsre", records, target_policy="true").skipped
    assert (skipped.index, skipped.code) == (1, "EK-R02")


def test_knowedits_nested_answers_are_flattened(tmp_path: Path) -> None:
    data = loaded(tmp_path, "knowedit", [files.WIKI_RECENT])
    assert (data.form, data.target_policy) == ("wiki_recent", "recent")
    (request,) = data.requests
    assert (request.target_new, request.target_true) == ("Lima", None)
    assert request.locality == {
        "relation_specificity": (
            Probe("Ada Berg speaks", ("Norwegian", "Norsk", "English")),
            Probe("The award of Ada Berg is", ()),
        ),
        "forgetfulness": (Probe("Ada Berg, who is not Nils, is", ("x",)),),
    }


def test_a_knowedit_probe_that_should_follow_and_has_no_answer_is_left_out(tmp_path: Path) -> None:
    data = loaded(tmp_path, "knowedit", [files.WIKI_RECENT])
    assert data.requests[0].portability == {
        "reasoning": (Probe("The river of Ada Berg's city is", ("Rimac",)),),
        "subject_aliasing": (Probe("The city where A. Berg paints is", ("Lima", "Ciudad")),),
    }
    assert [(s.index, s.reason) for s in data.left_out] == [
        (0, "1 of portability.Subject_Aliasing have no answer")
    ]


def test_knowedits_wiki_counterfact_has_plain_answers_and_an_old_one(tmp_path: Path) -> None:
    data = loaded(tmp_path, "knowedit", [files.WIKI_COUNTERFACT])
    assert (data.form, data.target_policy) == ("wiki_counterfact", "counterfactual")
    assert data.requests[0].target_true == "Oslo"
    assert data.requests[0].locality == {
        "relation_specificity": (Probe("Ada speaks", ("Norwegian",)),)
    }


def test_knowedits_zsre_has_a_paraphrase(tmp_path: Path) -> None:
    data = loaded(tmp_path, "knowedit", [files.KNOWEDIT_ZSRE])
    assert data.form == "zsre"
    (request,) = data.requests
    assert request.paraphrases == ("Where is Ada Berg's studio?",)
    assert (request.target_new, request.target_true) == ("Lima", "Oslo")
    assert request.portability == {"reasoning": (Probe("Her river is", ("Rimac",)),)}


def test_wikibio_goes_on_with_the_true_sentence(tmp_path: Path) -> None:
    data = loaded(tmp_path, "knowedit", [files.WIKIBIO])
    assert (data.form, data.target_policy) == ("wikibio", "true")
    (request,) = data.requests
    assert request.text == files.WIKIBIO["text"]
    assert (request.subject, request.target_new) == ("ada berg", "She moved to Lima in 1990.")


@pytest.mark.parametrize(
    ("policy", "target", "references"),
    [
        ("positive", "I love it.", ("I love it.", "Lovely!")),
        ("negative", "Too foggy.", ("Too foggy.",)),
    ],
)
def test_convsent_takes_the_wanted_side(
    tmp_path: Path, policy: str, target: str, references: tuple[str, ...]
) -> None:
    data = loaded(tmp_path, "knowedit", files.CONVSENT, target_policy=policy)
    first, last = data.requests
    assert first.text == "What do you think of Lima?"
    assert (first.target_new, first.reference_texts) == (target, references)
    assert first.locality == {"other_entity": (Probe("What do you think of Oslo?"),)}
    assert last.locality == {"other_entity": (Probe("What do you think of Lima?"),)}
    assert first.generation_texts == ("What do you think of Lima?",)


def test_sanitations_kept_questions_go_round_so_that_each_is_asked_once(tmp_path: Path) -> None:
    data = loaded(tmp_path, "knowedit", files.SANITATION)
    assert (data.form, data.records, data.target_policy) == ("sanitation", 5, "refusal")
    assert [(r.text, r.target_new, r.target_true) for r in data.requests] == [
        ("What is brie?", "I cannot say.", "Cheese"),
        ("What is feta?", "I cannot say.", "Cheese"),
    ]
    assert [r.locality["retained"] for r in data.requests] == [
        (Probe("How many is 0?", ("0",)), Probe("How many is 2?", ("2",))),
        (Probe("How many is 1?", ("1",)),),
    ]


def test_a_mquake_case_is_one_group_with_its_questions_on_the_first_request(
    tmp_path: Path,
) -> None:
    single = files.but(
        files.MQUAKE, case_id=6, requested_rewrite=files.MQUAKE["requested_rewrite"][:1]
    )
    data = loaded(tmp_path, "mquake", [files.MQUAKE, single])
    assert [(r.id, r.group, r.text) for r in data.requests] == [
        ("5/0", "5", "Ada Berg paints in"),
        ("5/1", "5", "The river of Lima is"),
        ("6", "", "Ada Berg paints in"),
    ]
    assert [len(group) for group in data.groups] == [2, 1]
    pair = (("Nile", "the Nile"), "Aker", "Nile")
    assert data.requests[0].portability == {
        "multi_hop": (
            Probe("Which river flows where Ada Berg paints?", *pair),
            Probe("Ada Berg paints at which river?", *pair),
        ),
        "single_hop": (Probe("Where does Ada Berg paint?", ("Lima", "Ciudad de los Reyes")),),
    }
    assert data.requests[1].portability == {}
    assert data.requests[1].paraphrases == ("Which river flows through Lima?",)


def test_known_facts_use_the_prompt_that_leads_to_the_attribute(tmp_path: Path) -> None:
    data = loaded(tmp_path, "known_1000", files.KNOWN)
    assert data.target_policy == "true"
    assert [(r.id, r.text, r.target_new, r.target_true) for r in data.requests] == [
        ("0", "Vigeland is in the city of", "Oslo", None),
        ("1", "Larco is in the city of", "Lima", None),
        ("2", "Prado is in the city of", "Madrid", None),
    ]


def test_known_facts_can_be_given_another_attribute_of_the_relation(tmp_path: Path) -> None:
    data = loaded(tmp_path, "known_1000", files.KNOWN, target_policy="counterfactual")
    attributes = {"Oslo", "Lima", "Madrid"}
    for request, known in zip(data.requests, files.KNOWN, strict=True):
        assert request.target_true == known["attribute"]
        assert request.target_new in attributes - {known["attribute"]}
    assert data == loaded(tmp_path, "known_1000", files.KNOWN, target_policy="counterfactual")


def test_pararel_asks_only_phrasings_that_end_in_the_object(tmp_path: Path) -> None:
    data = load_dataset(f"pararel:{files.write_pararel(tmp_path / 'rel')}")
    asked = {p for r in data.requests if r.relation == "P1" for p in (r.prompt, *r.paraphrases)}
    assert asked == {"{} paints in", "{} has a studio in"}
    assert [(s.index, "P3" in s.reason) for s in data.skipped] == [(6, True)]
    assert (data.records, len(data.requests), data.source) == (7, 6, "rel")


def test_pararels_counterfactual_target_is_no_true_object_of_the_subject(tmp_path: Path) -> None:
    folder = files.write_pararel(tmp_path / "rel")
    for seed in range(10):
        for request in load_dataset(f"pararel:{folder}", seed=seed).requests:
            true = {o for s, o in files.PAIRS[request.relation or ""] if s == request.subject}
            assert request.target_true in true
            assert request.target_new not in true


def test_pararels_probes_are_facts_of_others_and_of_the_subject(tmp_path: Path) -> None:
    folder = files.write_pararel(tmp_path / "rel")
    ada = next(r for r in load_dataset(f"pararel:{folder}").requests if r.id == "u0")
    assert ada.locality["same_subject"] == (Probe("Ada Berg speaks", ("Norwegian",)),)
    assert ada.locality["near_name"] == (Probe("Nils Berg speaks", ("Danish",)),)
    prompts = {p.prompt for p in ada.locality["neighborhood"]}
    assert all("Ada" not in prompt for prompt in prompts)
    for probe in ada.locality["neighborhood"]:
        assert probe.target_true == probe.answers[0] != probe.target_new == ada.target_new


def test_plain_requests_are_taken_as_they_stand(tmp_path: Path) -> None:
    data = load_dataset(f"requests:{files.write(tmp_path, 'r.jsonl', [files.REQUEST])}")
    (request,) = data.requests
    assert (request.id, request.text) == ("#0", "The capital of Japan is")
    assert data.target_policy == "given"


def test_an_unknown_target_policy_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match=r"'ture'\. Did you mean 'true'\?"):
        loaded(tmp_path, "zsre", [files.ZSRE], target_policy="ture")


def test_an_unknown_form_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RequestFileError, match=r"no form 'wikibo'\. Did you mean 'wikibio'\?"):
        loaded(tmp_path, "knowedit", [files.WIKIBIO], form="wikibo")


def test_new_request_fields_are_left_out_where_they_are_empty() -> None:
    from editkit_core.patch.header_codec import to_json

    request = EditRequest(
        prompt="{} is", subject="x", target_new="y", locality={"a": (Probe("p", ("q",)),)}
    )
    assert to_json(request) == {
        "prompt": "{} is",
        "subject": "x",
        "target_new": "y",
        "locality": {"a": [{"prompt": "p", "answers": ["q"]}]},
    }


def test_every_form_and_policy_stands_on_its_reference_page() -> None:
    from editkit_core.data.builtin import BUILTIN_FORMATS

    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "datasets.md"
    text = page.read_text(encoding="utf-8").partition("## Formats")[2]
    for name, factory in BUILTIN_FORMATS.items():
        words = {name, *(form.name for form in factory().forms)}
        words |= {policy for form in factory().forms for policy in form.policies}
        assert [word for word in sorted(words) if f"`{word}`" not in text] == []


def test_a_request_with_every_new_field_survives_a_patch_header(tmp_path: Path) -> None:
    from editkit_core.params import converter
    from editkit_core.patch.header_codec import to_json

    for data in (
        loaded(tmp_path, "counterfact", [files.FULL]),
        loaded(tmp_path, "knowedit", files.CONVSENT),
        loaded(tmp_path, "mquake", [files.MQUAKE]),
    ):
        for request in data.requests:
            assert converter().structure(to_json(request), EditRequest) == request


@pytest.mark.parametrize(
    "changes",
    [
        {"attribute_prompts": ["text"]},
        {"attribute_prompts": 3},
        {"generation_prompts": "one text"},
        {"reference_texts": [1]},
        {"group": None},
    ],
)
def test_a_new_field_of_the_wrong_type_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        EditRequest(prompt="{} is", subject="x", target_new="y", **changes)


@pytest.mark.parametrize("target", ["", " ", 3])
def test_half_a_pair_that_is_no_text_is_refused(target: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"target_true must be text"):
        Probe("p", ("a",), target, "b")
