"""Numbers that papers report, kept as data: one JSON file a table, each with its source.

Only numbers that were read from a source are kept. They are in percent there (fluency: hundredths
of a bit) and here in the unit of the metric, so that they stand beside measured ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any, cast

import attrs

from editkit_core.metrics.report import Protocol

__all__ = ["PublishedScore", "published_scores"]

_SCALE = 100


@attrs.frozen(kw_only=True)
class PublishedScore:
    """One number of a paper.

    Attributes:
        method: Id of the method.
        models: Names of the model; any of them.
        dataset: Name of the data set, for example ``zsre`` or ``knowedit/wiki_recent``.
        target_policy: Which of the data set's answers the target is.
        scenario: How edits were put together.
        metric: The metric's registered name.
        probe: Its probe type; empty where the paper gives the mean over types.
        protocol: How it was measured.
        value: The score after the edit, in the metric's unit.
        source: Paper and table.
        url: Where the paper is.
        read_from: Where the number was read.
        note: How its protocol differs from ours.
    """

    method: str
    models: tuple[str, ...]
    dataset: str
    target_policy: str
    scenario: str
    metric: str
    probe: str
    protocol: Protocol
    value: float
    source: str
    url: str
    read_from: str
    note: str


@cache
def published_scores() -> tuple[PublishedScore, ...]:
    """Return every published number, in the order of the files."""
    folder = resources.files(__name__)
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".json"))
    files = (json.loads((folder / name).read_text(encoding="utf-8")) for name in names)
    return tuple(score for file in files for score in _scores(file))


def _scores(file: dict[str, Any]) -> Iterator[PublishedScore]:  # Any: JSON values
    for table in file["tables"]:
        for method, values in table["methods"].items():
            for column, value in zip(table["columns"], values, strict=True):
                if value is None:
                    continue
                metric, _, probe = column.partition("/")
                sampled = metric == "fluency"
                yield PublishedScore(
                    method=method,
                    models=tuple(table["models"]),
                    dataset=table["dataset"],
                    target_policy=file["target_policy"],
                    scenario=file["scenario"],
                    metric=metric,
                    probe=probe,
                    protocol=cast(Protocol, "gen_sample" if sampled else file["protocol"]),
                    value=value / _SCALE,
                    source=file["source"],
                    url=file["url"],
                    read_from=file["read_from"],
                    note=file["note"],
                )
