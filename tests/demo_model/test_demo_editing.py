"""ROME on the packaged decoders: edits stick, reach other phrasings, and leave the rest alone."""

from __future__ import annotations

import pytest

from editkit_core import Editor
from editkit_core.metrics.report import merge_reports
from editkit_demo.requests import counterfactual_request, counterfactual_requests

FEW = {"editkit:demo": 6, "editkit:demo-llama": 3}
GOALS = {
    ("reliability", ""): 0.98,
    ("generalization", ""): 0.85,
    ("locality", "neighborhood"): 0.95,
    ("locality", "same_subject"): 0.60,
}


@pytest.fixture(scope="module", params=["demo", "demo-llama"])
def editor(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Editor.from_pretrained(f"editkit:{request.param}")


def measure(editor, count, seed, folder):
    reports = []
    for request in counterfactual_requests(count, seed):
        patch = editor.edit(request, seed=seed, statistics_dir=folder)
        reports.append(editor.evaluate(request, patch))
    return merge_reports(reports)


def test_a_few_edits_stick_and_neighbours_hold(editor, tmp_path_factory):
    digest = editor.model.state_digest()
    report = measure(editor, FEW[editor.model.name], 3, tmp_path_factory.mktemp("statistics"))
    # Floors far below the goals, which take more edits to measure than a quick test has time for.
    assert report.score("reliability").before < 0.5
    assert report.score("reliability").after >= 0.9
    assert report.score("generalization").after >= 0.7
    assert report.score("locality", "neighborhood").after >= 0.9
    assert report.score("locality", "same_subject").after >= 0.5
    assert editor.model.state_digest() == digest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_edits_reach_the_goals(editor, tmp_path_factory):
    report = measure(editor, 100, 1, tmp_path_factory.mktemp("statistics"))
    reached = {key: report.score(*key).after for key in GOALS}
    missed = {key: value for key, value in reached.items() if value < GOALS[key]}
    assert not missed


def test_a_request_carries_probes_for_what_should_stay_and_what_should_follow(editor):
    from editkit_demo.facts import Fact, load_facts

    fact = next(f for f in load_facts() if (f.subject, f.relation) == ("Japan", "currency"))
    request = counterfactual_request(fact)
    assert request.target_new != fact.object
    assert {p.answers[0] for p in request.portability["two_hop"]} == {request.target_new}
    same = request.locality["same_subject"]
    assert all("Japan" in probe.prompt for probe in same)
    assert {probe.answers[0] for probe in same} == {
        f.object for f in load_facts() if f.subject == "Japan" and f.relation != "currency"
    }
    known = {(f.subject, f.relation, f.object) for f in load_facts()}
    assert Fact("Japan", "currency", request.target_new) not in {Fact(*f) for f in known}


def test_equal_seeds_draw_equal_requests_and_more_extend_fewer():
    assert counterfactual_requests(5, 1) == counterfactual_requests(9, 1)[:5]
    assert counterfactual_requests(5, 1) != counterfactual_requests(5, 2)
