"""Scores by relation: an average may hide that some kinds of fact cannot be edited."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import attrs

from editkit_core.report.catalogue import Catalogue
from editkit_core.report.runs import ReportedRun
from editkit_core.report.scores import Key, Score, ScoreTable, score_table

__all__ = ["RelationScores", "headline_keys", "relations_of"]

MOST_COLUMNS = 6
# Free generation first: it is what a user of the model sees.
_PREFERRED = ("gen_em", "gen_judge", "tf_contrastive", "tf_token")


@attrs.frozen(kw_only=True)
class RelationScores:
    """The requests of one relation.

    Attributes:
        relation: Its name.
        requests: How many were measured.
        scores: By what they are of.
    """

    relation: str
    requests: int
    scores: dict[Key, Score]


def headline_keys(keys: Iterable[Key], catalogue: Catalogue) -> list[Key]:
    """Return a few keys that stand for the others: one protocol a metric."""
    found = catalogue.ordered(keys)
    chosen: list[Key] = []
    for metric in [*catalogue.infos, *(key.metric for key in found)]:
        if any(key.metric == metric for key in chosen):
            continue
        own = [key for key in found if key.metric == metric]
        protocol = min((key.protocol for key in own), key=_preference, default="")
        if protocol in _PREFERRED:
            chosen += [key for key in own if key.protocol == protocol]
    return chosen[:MOST_COLUMNS]


def relations_of(
    run: ReportedRun, keys: Iterable[Key], *, seed: int = 0
) -> tuple[RelationScores, ...]:
    """Return the last stage's scores by relation, that with most requests first."""
    table = score_table(run.rows(run.last_stage))
    members: dict[str, list[int]] = defaultdict(list)
    for request in table.requests:
        if request in run.relations:
            members[run.relations[request]].append(request)
    wanted = set(keys)
    order = sorted(members, key=lambda relation: (-len(members[relation]), relation))
    return tuple(_scores(table, relation, members[relation], wanted, seed) for relation in order)


def _scores(
    table: ScoreTable, relation: str, requests: list[int], wanted: set[Key], seed: int
) -> RelationScores:
    part = table.only(requests)
    scores = {score.key: score for score in part.scores(seed=seed) if score.key in wanted}
    return RelationScores(relation=relation, requests=len(requests), scores=scores)


def _preference(protocol: str) -> int:
    return _PREFERRED.index(protocol) if protocol in _PREFERRED else len(_PREFERRED)
