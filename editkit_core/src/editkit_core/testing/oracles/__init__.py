"""The oracle suite: models whose score is known, to check metrics and scorers against.

    from editkit_core.testing.oracles import check_metric
    check_metric(MyMetric())

A scorer of one's own is checked with ``check_metric(metric, answer=my_answer)``, where
``my_answer`` takes the place of `editkit_core.metrics.engine.answer`.

`check_metric` raises `OracleError` unless the metric gives exactly what models deserve that always
or never predict right, copy their input, or are right only after an edit, for every tokenizer
style, padding side, batch size, target length and kind of model.
"""

from __future__ import annotations

from editkit_core.testing.oracles.checking import (
    Answer,
    OracleCase,
    OracleError,
    all_cases,
    check_metric,
    check_metrics,
    quick_cases,
)
from editkit_core.testing.oracles.network import OracleNetwork, oracle_model
from editkit_core.testing.oracles.tokenizers import TOKENIZER_STYLES as TOKENIZER_STYLES
from editkit_core.testing.oracles.tokenizers import make_tokenizer
from editkit_core.testing.oracles.world import World, make_world

__all__ = [
    "Answer",
    "OracleCase",
    "OracleError",
    "OracleNetwork",
    "World",
    "all_cases",
    "check_metric",
    "check_metrics",
    "make_tokenizer",
    "make_world",
    "oracle_model",
    "quick_cases",
]
