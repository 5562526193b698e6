"""The real files, where the environment variable EDITKIT_DATA names their folder."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from editkit_core import Probe
from editkit_core.data import DataSet, load_dataset
from editkit_core.errors import EditkitError

FOLDER = os.environ.get("EDITKIT_DATA", "")
pytestmark = pytest.mark.skipif(
    not (Path(FOLDER) / "MANIFEST.json").is_file() or not FOLDER,
    reason="EDITKIT_DATA names no folder of real data",
)

FILES = {  # format, form, requests, indexes that are skipped
    "counterfact/counterfact-train.json": ("counterfact", "short", 10_000, []),
    "counterfact/counterfact-val.json": ("counterfact", "short", 1_919, []),
    "counterfact/counterfact_distracting_dev.json": ("counterfact", "full", 252, []),
    "counterfact/counterfact_full_portability_dev331.json": ("counterfact", "full", 331, []),
    "counterfact/counterfact_subject_replace_dev.json": ("counterfact", "full", 38, []),
    "zsre/zsre_mend_train-1k.json": ("zsre", "mend", 998, [534, 723]),
    "zsre/zsre_portability_one_hop_dev.json": ("zsre", "mend", 304, []),
    "zsre/zsre_inverse_relation_dev.json": ("zsre", "mend", 124, []),
    "zsre/zsre_subject_replace_dev.json": ("zsre", "mend", 97, [4, 43, 66]),
    "zsre/knowedit_ZsRE_test_dev.json": ("knowedit", "zsre", 390, [114]),
    "knowedit/wiki_recent_train.json": ("knowedit", "wiki_recent", 570, []),
    "knowedit/wiki_counterfact_train.json": ("knowedit", "wiki_counterfact", 1_428, []),
    "knowedit/wikibio_train.json": ("knowedit", "wikibio", 464, []),
    "knowedit/convsent_val.json": ("knowedit", "convsent", 799, []),
    "knowedit/sanitation_train.json": ("knowedit", "sanitation", 80, []),
    "mquake/MQuAKE-hard_dev129.json": ("mquake", "cases", 516, []),
    "known_1000/known_1000.json": ("known_1000", "facts", 1_209, []),
}


@cache
def manifest() -> dict[str, dict[str, Any]]:
    entries = json.loads((Path(FOLDER) / "MANIFEST.json").read_text(encoding="utf-8"))
    return {entry["path"]: entry for entry in entries}


@cache
def load(path: str) -> DataSet:
    return load_dataset(path, folder=FOLDER)


def kinds(data: DataSet, field: str) -> dict[str, int]:
    """How many probes of each type there are."""
    counts: Counter[str] = Counter()
    for request in data.requests:
        for name, probes in getattr(request, field).items():
            counts[name] += len(probes)
    return dict(counts)


@pytest.mark.parametrize("path", FILES)
def test_every_record_of_the_manifest_is_there_and_every_skipped_one_is_named(path: str) -> None:
    name, form, requests, skipped = FILES[path]
    data = load(path)
    entry = manifest()[path]
    assert (data.name, data.form, data.detected) == (name, form, True)
    assert data.digest == entry["sha256"]
    # the manifest counts Sanitation's two lists; the README counts their 80 + 453 records
    assert data.records == (533 if form == "sanitation" else entry["records"])
    assert len(data.requests) == requests
    assert [s.index for s in data.skipped] == skipped
    assert data.left_out == ()
    assert len({request.id for request in data.requests}) == requests


def test_the_two_empty_targets_of_zsre_are_refused_when_strict() -> None:
    assert {s.code for s in load("zsre/zsre_mend_train-1k.json").skipped} == {"EK-R02"}
    with pytest.raises(EditkitError, match=r"record 534 \(counted from 0\): 'alt' is empty"):
        load_dataset("zsre/zsre_mend_train-1k.json", folder=FOLDER, strict=True)


def test_subjects_that_are_not_in_their_question_are_skipped_as_such() -> None:
    for path in ("zsre/zsre_subject_replace_dev.json", "zsre/knowedit_ZsRE_test_dev.json"):
        assert {s.code for s in load(path).skipped} == {"EK-R01"}


def test_counterfacts_short_form_by_hand() -> None:
    request = load("counterfact/counterfact-val.json").requests[1]
    assert (request.id, request.template) == ("42", "The profession of {} is")
    assert (request.subject, request.target_new, request.target_true) == (
        "Arun Nehru",
        "actor",
        "politician",
    )
    assert request.paraphrases == ()
    assert request.portability["rephrase_prompt"][0].prompt == "Arun Nehru is known for"
    assert request.locality["neighborhood"] == (
        Probe("George Washington's profession is a", ("politician",), "politician", "actor"),
    )


def test_counterfacts_full_form_by_hand() -> None:
    data = load("counterfact/counterfact_full_portability_dev331.json")
    request = data.requests[330]
    assert (request.id, request.relation, request.text) == (
        "4476",
        "P108",
        "Chris Cuomo, who works for",
    )
    assert (request.target_new, request.target_true) == ("ESPN", "CNN")
    assert request.paraphrases[1] == "Boyle's book Water Music. Chris Cuomo, of"
    assert request.locality["neighborhood"][9] == Probe(
        "Anderson Cooper, of", ("CNN",), "CNN", "ESPN"
    )
    assert request.attribute_prompts[9].prompt == "Jemele Hill is employed by"
    assert request.portability["one_hop"] == (
        Probe(
            "In which city is the headquarters of the company Chris Cuomo works for?",
            ("Bristol, Connecticut",),
        ),
    )
    for one in data.requests:
        assert len(one.paraphrases) == 2
        assert len(one.locality["neighborhood"]) == len(one.generation_prompts) == 10
        assert len(one.attribute_prompts) == 10


def test_counterfacts_distracting_neighbours_and_aliases_by_hand() -> None:
    request = load("counterfact/counterfact_distracting_dev.json").requests[0]
    assert request.locality["distracting"][0].prompt == (
        "Laurent Cars was employed in Philadelphia. Sarah Bernhardt worked in the city of"
    )
    assert request.locality["same_subject"] == (
        Probe("Who did Laurent Cars teach as a student?", ("Jean-Baptiste Perronneau",)),
    )
    alias = load("counterfact/counterfact_subject_replace_dev.json").requests[0]
    assert alias.portability["subject_aliasing"] == (
        Probe("L. Cars was employed in", ("Philadelphia",)),
    )


def test_zsre_by_hand() -> None:
    request = load("zsre/zsre_portability_one_hop_dev.json").requests[1]
    assert request.template == "In which fictional universe is {} a character?"
    assert (request.target_new, request.target_true) == ("Image Universe", "DC Universe")
    assert request.portability["one_hop"][0].answers == ("Todd McFarlane",)
    inverse = load("zsre/zsre_inverse_relation_dev.json").requests[0]
    assert inverse.portability == {
        "inverse": (Probe("Who is Acrotatus IV's son?", ("Acrotatus I",)),)
    }
    alias = load("zsre/zsre_subject_replace_dev.json").requests[0]
    assert alias.portability == {
        "subject_aliasing": (Probe("Which constellation is GZ Vel in?", ("Delphinus",)),)
    }


def test_zsre_with_the_true_policy_inserts_what_is_so() -> None:
    path = "zsre/zsre_mend_train-1k.json"
    data = load_dataset(path, folder=FOLDER, target_policy="true")
    assert (len(data.requests), data.requests[0].target_new) == (1_000, "uniform")
    assert load(path).requests[0].target_new == "unmanned aircraft"


def test_knowedits_probes_by_count_and_by_hand() -> None:
    recent = load("knowedit/wiki_recent_train.json")
    assert kinds(recent, "locality") == {"relation_specificity": 1_648, "forgetfulness": 298}
    assert kinds(recent, "portability") == {
        "logical_generalization": 223,
        "reasoning": 476,
        "subject_aliasing": 52,
    }
    siblings = recent.requests[3].locality["relation_specificity"][1]
    assert siblings == Probe(
        "The names of the siblings of Alfhild Tamm are",
        ("Hildegard Tamm", "Märta Tamm-Götlind", "Ingeborg Hegardt", "Olof Tamm"),
    )
    counterfact = load("knowedit/wiki_counterfact_train.json")
    assert kinds(counterfact, "portability")["subject_aliasing"] == 1_410
    assert sum(request.target_true is None for request in counterfact.requests) == 1
    assert load("knowedit/wikibio_train.json").requests[463].subject == "lucy akhurst"


def test_convsent_and_sanitation_by_hand() -> None:
    first = load("knowedit/convsent_val.json").requests[0]
    assert first.text == "What do you think of Esparto, California?"
    assert len(first.reference_texts) == 13
    assert first.reference_texts[2] == "I love California."
    sanitation = load("knowedit/sanitation_train.json")
    assert sanitation.requests[1].text == "What type of foodstuff is halloumi?"
    assert {request.target_new for request in sanitation.requests} == {"I don't know."}
    assert kinds(sanitation, "locality") == {"retained": 453}


def test_mquakes_cases_are_groups_of_four() -> None:
    data = load("mquake/MQuAKE-hard_dev129.json")
    assert [len(group) for group in data.groups] == [4] * 129
    first = data.groups[128][0]
    assert (first.text, first.target_new) == (
        "The author of The Birth of Tragedy is",
        "Stephen Crane",
    )
    probe = first.portability["multi_hop"][2]
    assert probe.prompt.startswith("In which city of the country of origin")
    assert probe.answers == ("Duluth", "Duluth, USA", "Duluth, Minnesota", "Duluth, MN")
    assert (probe.target_true, probe.target_new) == ("Berlin", "Duluth")
    assert len(first.portability["single_hop"]) == 4


def test_known_facts_by_hand() -> None:
    request = load("known_1000/known_1000.json").requests[0]
    assert request.text == "Vinson Massif is located in the continent of"
    assert (request.target_new, request.relation) == ("Antarctica", "P30")


def test_pararel_by_count_and_by_hand() -> None:
    data = load_dataset("pararel:pararel", folder=FOLDER, limit=300)
    assert data.records == 29_411
    relations = Counter(skipped.reason.split()[2] for skipped in data.skipped)
    assert relations == {"P31": 879, "P527": 922}  # they have triples and no patterns
    assert len(data.requests) == 300
    more = load_dataset("pararel:pararel", folder=FOLDER, limit=400)
    assert more.requests[:300] == data.requests
    for request in data.requests:
        assert request.prompt.count("{}") == 1
        assert not request.prompt.endswith((" ", ".", "[Y]"))
        assert request.target_new != request.target_true


@pytest.mark.parametrize("path", FILES)
def test_the_same_seed_draws_the_same_and_a_larger_limit_begins_with_it(path: str) -> None:
    few, again, more = (
        load_dataset(path, folder=FOLDER, limit=limit, seed=3) for limit in (5, 5, 9)
    )
    assert few == again
    assert more.requests[: len(few.requests)] == few.requests


@pytest.mark.parametrize("path", FILES)
def test_every_drawn_request_survives_its_own_file(path: str, tmp_path: Path) -> None:
    from editkit_core.data.requests import dump_request

    drawn = load_dataset(path, folder=FOLDER, limit=20).requests
    lines = "".join(json.dumps(dump_request(request)) + "\n" for request in drawn)
    (tmp_path / "r.jsonl").write_text(lines, encoding="utf-8")
    assert load_dataset(f"requests:{tmp_path / 'r.jsonl'}").requests == drawn
