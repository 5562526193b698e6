from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from fake_distributions import run_python

from editkit_core import hookimpl
from editkit_core.errors import BrokenPluginError, MissingExtraError, UnknownMetricError
from editkit_core.host import Found, Host
from editkit_core.metrics import harness as harness_module
from editkit_core.metrics.context import MetricContext
from editkit_core.metrics.harness import TINY_TASK, Harness, tiny_task_records
from editkit_core.metrics.metric import DerivedMetric, Metric, RunMetric
from editkit_core.metrics.probes import reliability
from editkit_core.metrics.registry import DEFAULT_METRICS, load_metrics, metric_factories
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch


def host_with(**metrics: Any) -> Host:
    @hookimpl
    def editkit_register_metrics(register: Any) -> None:
        for name, factory in metrics.items():
            register(name, factory)

    plugin = SimpleNamespace(editkit_register_metrics=editkit_register_metrics)
    return Host(methods=(), plugins=(Found("mine", "editkit-mine", "1", (), lambda: plugin),))


def renamed(name: str) -> Any:
    made = reliability()
    return attrs.evolve(made, info=attrs.evolve(made.info, name=name))


@pytest.mark.parametrize("name", metric_factories())
def test_every_metric_of_the_core_says_what_it_is(name: str) -> None:
    (metric,) = load_metrics([name])
    info = metric.info
    assert info.name == name
    assert info.title
    assert info.definition
    assert info.source
    assert info.protocols
    assert sum(isinstance(metric, k) for k in (Metric, RunMetric, DerivedMetric)) == 1


@pytest.mark.parametrize("name", metric_factories())
def test_every_metric_documents_definition_unit_and_source(name: str) -> None:
    documentation = metric_factories()[name].__doc__ or ""
    assert "Unit:" in documentation
    assert "Source:" in documentation


def test_the_default_metrics_are_the_four_of_the_field() -> None:
    assert tuple(m.info.name for m in load_metrics()) == DEFAULT_METRICS


def test_a_plugins_metric_is_found_by_name() -> None:
    (metric,) = load_metrics(["mine"], host_with(mine=lambda: renamed("mine")))
    assert metric.info.name == "mine"
    assert set(metric_factories(host_with(mine=reliability))) == {*metric_factories(), "mine"}


def test_a_metric_is_made_only_when_it_is_used() -> None:
    def fail() -> Any:
        raise AssertionError("made")

    assert load_metrics(["locality"], host_with(mine=fail))


def test_an_unknown_name_is_refused_with_a_near_one() -> None:
    with pytest.raises(UnknownMetricError, match="Did you mean 'locality'"):
        load_metrics(["localty"])


def test_a_plugin_cannot_replace_a_metric_of_the_core() -> None:
    with pytest.raises(BrokenPluginError, match="reliability"):
        metric_factories(host_with(reliability=reliability))


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        (lambda: 3, "has not the members"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: renamed("other"), "calls itself 'other'"),
        (lambda: SimpleNamespace(info=3, asks=1, rows=2), "has not the members"),
    ],
)
def test_a_broken_metric_is_named(factory: Any, why: str) -> None:
    with pytest.raises(BrokenPluginError, match=why):
        load_metrics(["mine"], host_with(mine=factory))


# -- the harness, without it ----------------------------------------------------------------------


def test_the_harness_scores_the_model_with_and_without_the_patch() -> None:
    model = tiny_model("gpt2")
    patch = random_patch(model)
    digests = []

    def score(asked: Any, tasks: Any) -> dict[tuple[str, str], float]:
        assert asked is model
        digests.append(asked.state_digest())
        return {(task, "acc"): 1.0 / len(digests) for task in tasks}

    (given,) = load_metrics(["harness"])
    metric = Harness(given.info, score)
    rows = list(metric.measure(model, patch, MetricContext(tasks=("piqa", "boolq"), first=2)))
    assert [(r.probe, r.before, r.after, r.request) for r in rows] == [
        ("piqa/acc", 1.0, 0.5, 2),
        ("boolq/acc", 1.0, 0.5, 2),
    ]
    assert digests[0] != digests[1]
    assert model.state_digest() == digests[0]


def test_without_a_patch_the_harness_runs_once() -> None:
    calls = []
    metric = Harness(load_metrics(["harness"])[0].info, lambda m, t: calls.append(t) or {})
    assert list(metric.measure(tiny_model("gpt2"), None, MetricContext())) == []
    assert calls == [(TINY_TASK,)]


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"editkit-core\[harness\]"):
        harness_module.lm_eval_scores(tiny_model("gpt2"), [TINY_TASK])


def test_only_shares_are_taken_from_the_harness() -> None:
    found = {
        "results": {
            "a": {
                "alias": "a",
                "acc,none": 0.5,
                "acc_stderr,none": "N/A",
                "f1,strict": 0.25,
                "perplexity,none": 3.0,
                "bits,none": 0.5,
            }
        },
        "higher_is_better": {"a": {"acc": True, "f1": True, "perplexity": True, "bits": False}},
    }
    assert dict(harness_module._shares(found)) == {("a", "acc"): 0.5, ("a", "f1,strict"): 0.25}


def test_the_first_choice_of_our_own_task_is_never_right() -> None:
    records = tiny_task_records()
    assert len(records) >= 8
    assert all(record["answer"] > 0 for record in records)


@pytest.mark.parametrize(
    "module", ["ask", "cache", "context", "evaluate", "judge", "published", "registry", "report"]
)
def test_planning_a_measurement_imports_no_torch(module: str) -> None:
    code = (
        f"import sys, editkit_core.metrics.{module} as m; "
        "getattr(m, 'load_metrics', list)(); "
        "print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules])"
    )
    done = run_python("-c", code)
    assert done.stdout == "[]\n", done.stderr
