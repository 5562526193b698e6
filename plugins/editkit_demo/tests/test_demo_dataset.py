from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from editkit_core.data import load_dataset
from editkit_core.errors import EditkitError
from editkit_demo.facts import held_out_question, load_facts, part_of, trained_questions
from editkit_demo.requests import counterfactual_requests


def test_demo_is_every_fact_in_the_tables_order() -> None:
    data = load_dataset("demo")
    assert data.records == len(data.requests) == len(load_facts())
    assert [r.id for r in data.requests] == [f"{f.subject}/{f.relation}" for f in load_facts()]
    assert (data.name, data.target_policy, data.skipped) == ("demo", "counterfactual", ())
    assert len(data.digest) == 64


@pytest.mark.parametrize(
    ("spec", "options"), [("demo:5", {}), ("demo", {"limit": 5}), ("demo:9", {"limit": 5})]
)
def test_a_count_draws_as_the_demo_does(spec: str, options: dict[str, Any]) -> None:
    data = load_dataset(spec, seed=3, **options)
    assert [r.id for r in data.requests] == [r.id for r in counterfactual_requests(5, 3)]
    assert [r.target_new for r in data.requests] == [
        r.target_new for r in counterfactual_requests(5, 3)
    ]
    assert (data.limit, data.seed) == (5, 3)


def test_neighbours_have_the_pair_that_is_compared() -> None:
    for request in load_dataset("demo:20").requests:
        for probe in request.locality["neighborhood"]:
            if probe.answers[0] == request.target_new:
                assert (probe.target_true, probe.target_new) == (None, None)
            else:
                pair = (probe.answers[0], request.target_new)
                assert (probe.target_true, probe.target_new) == pair


@pytest.mark.parametrize(
    "spec", ["demo:x", "demo:0", "demo:-1", "demo:1.5", "demo:٣", "demo:test:", "demo:test:x"]
)
def test_a_count_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(EditkitError, match=r"demo:100"):
        load_dataset(spec)


def test_the_demo_has_one_form_and_one_policy() -> None:
    with pytest.raises(EditkitError, match=r"no form 'x'"):
        load_dataset("demo", form="x")
    with pytest.raises(EditkitError, match=r"no target policy 'true'"):
        load_dataset("demo", target_policy="true")


FACTS = {(f.subject, f.relation): f for f in load_facts()}


def names_in(prompt: str) -> set[str]:
    """Return the subjects whose whole name stands in a prompt, the longest at each place."""
    found = {name for name, _ in FACTS if name in prompt}
    return {a for a in found if not any(a != b and a in b for b in found)}


@pytest.mark.parametrize("name", ["demo", "demo-questions"])
def test_train_and_test_are_all_facts_and_share_no_subject(name: str) -> None:
    train, test = (load_dataset(f"{name}:{part}") for part in ("train", "test"))
    assert (len(train.requests), len(test.requests)) == (1084, 415)
    assert {r.id for r in train.requests + test.requests} == {"/".join(key) for key in FACTS}
    assert not {r.subject for r in train.requests} & {r.subject for r in test.requests}


@pytest.mark.parametrize("spec", ["demo:train:300", "demo:test", "demo-questions:test:200"])
def test_the_probes_of_a_part_ask_about_its_subjects_alone(spec: str) -> None:
    part = spec.split(":")[1]
    requests = load_dataset(spec, seed=1).requests
    asked = {(p.prompt, *p.answers) for r in requests for ps in r.locality.values() for p in ps}
    assert asked
    for prompt, answer in asked:
        assert any(
            part_of(name) == part
            for name in names_in(prompt)
            if answer in {f.object for f in load_facts() if f.subject == name}
        )


def test_a_count_draws_from_a_part_and_extends_a_smaller_one() -> None:
    more, fewer = load_dataset("demo:test:40", seed=2), load_dataset("demo:test:15", seed=2)
    assert [r.id for r in more.requests[:15]] == [r.id for r in fewer.requests]
    assert more.requests != load_dataset("demo:test:40", seed=3).requests
    assert (more.records, more.limit) == (415, 40)


def test_the_questions_are_those_of_the_fact_and_the_targets_those_of_demo() -> None:
    requests = load_dataset("demo-questions").requests
    for request in requests[::7]:
        fact = FACTS[request.subject, request.relation]
        assert request.prompt in trained_questions(fact)
        assert request.paraphrases == (held_out_question(fact),)
        assert request.target_true == fact.object != request.target_new
    probes = [p for r in requests for kind in r.locality.values() for p in kind]
    probes += [p for r in requests for p in r.portability["two_hop"]]
    assert all(probe.prompt.endswith("?") for probe in probes)


def test_probes_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = (
        "from editkit_demo.requests import counterfactual_requests as c; import hashlib; "
        "print(hashlib.sha256(repr(c(300, 1)).encode()).hexdigest())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
