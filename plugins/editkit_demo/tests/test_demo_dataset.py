from __future__ import annotations

from typing import Any

import pytest

from editkit_core.data import load_dataset
from editkit_core.errors import EditkitError
from editkit_demo.facts import load_facts
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


@pytest.mark.parametrize("spec", ["demo:x", "demo:0", "demo:-1", "demo:1.5", "demo:٣"])
def test_a_count_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(EditkitError, match=r"demo:100"):
        load_dataset(spec)


def test_the_demo_has_one_form_and_one_policy() -> None:
    with pytest.raises(EditkitError, match=r"no form 'x'"):
        load_dataset("demo", form="x")
    with pytest.raises(EditkitError, match=r"no target policy 'true'"):
        load_dataset("demo", target_policy="true")
