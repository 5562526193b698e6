from __future__ import annotations

import pytest

from editkit_core.metrics.published import PublishedScore, published_scores
from editkit_core.metrics.registry import load_metrics, metric_factories


def one(**facts: str) -> PublishedScore:
    (found,) = (
        score
        for score in published_scores()
        if all(
            value in score.models if name == "model" else getattr(score, name) == value
            for name, value in facts.items()
        )
    )
    return found


def test_numbers_are_those_of_the_tables() -> None:
    rome = {"method": "rome", "dataset": "zsre"}
    assert one(**rome, model="llama-2-7b", metric="reliability").value == 0.9245
    assert one(**rome, model="gpt-j-6b", metric="locality").value == 0.9919
    assert one(**rome, model="llama-2-7b", metric="fluency").value == pytest.approx(5.8758)
    counterfact = one(
        method="t_patcher", dataset="counterfact", model="gpt-j-6b", metric="locality"
    )
    assert counterfact.value == 0.0837
    recent = one(method="mend", dataset="knowedit/wiki_recent", metric="portability")
    assert recent.value == 0.5011


def test_every_number_names_metric_protocol_and_source_as_ours_do() -> None:
    known = {name: load_metrics([name])[0].info for name in metric_factories()}
    scores = published_scores()
    assert len(scores) > 200
    for score in scores:
        assert score.protocol in known[score.metric].protocols
        assert score.source
        assert score.url.startswith("https://")
        assert score.read_from
        top = 10.0 if score.metric == "fluency" else 1.0
        assert 0 <= score.value <= top


def test_no_number_stands_twice() -> None:
    keys = [
        (s.method, s.models, s.dataset, s.metric, s.probe, s.source) for s in published_scores()
    ]
    assert len(set(keys)) == len(keys)
