"""Published numbers that belong beside a run's own: same method, model, data set and protocol."""

from __future__ import annotations

import attrs

from editkit_core.metrics.published import PublishedScore, published_scores
from editkit_core.report.runs import ReportedRun
from editkit_core.report.scores import Key

__all__ = ["Published", "published_of"]

# What papers call an answer, as the data sets' policies call it; a field that a data set always
# takes its answer from fits any policy.
_POLICIES = {"alt": "counterfactual", "target_new": ""}


@attrs.frozen(kw_only=True)
class Published:
    """What a paper reports.

    Attributes:
        value: The number, in the unit of the score.
        source: Where it stands.
        note: How its protocol differs from ours, or empty.
    """

    value: float
    source: str
    note: str = ""


def published_of(run: ReportedRun) -> dict[Key, tuple[Published, ...]]:
    """Return what papers report for the same as a run, by what it is of.

    The model is the same when the last part of its name is, whatever the case; nothing is shown
    for a model that is merely alike.
    """
    found: dict[Key, tuple[Published, ...]] = {}
    for score in published_scores():
        if _is_same(score, run):
            key = Key(score.metric, score.probe, score.protocol)
            one = Published(value=score.value, source=score.source, note=score.note)
            found[key] = (*found.get(key, ()), one)
    return found


def _is_same(score: PublishedScore, run: ReportedRun) -> bool:
    name, form = str(run.data.get("name") or ""), str(run.data.get("form") or "")
    policy = _POLICIES.get(score.target_policy, score.target_policy)
    return (
        score.method == run.method
        and score.scenario == run.scenario
        and score.dataset in (name, f"{name}/{form}")
        and policy in ("", run.target_policy)
        and _model(run.model_name) in map(_model, score.models)
    )


def _model(name: str) -> str:
    return name.rpartition("/")[2].casefold()
