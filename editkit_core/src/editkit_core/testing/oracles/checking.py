"""Check metrics against models whose score is known: `check_metric`.

A model that knows every answer must score exactly the metric's ideal, one that never predicts right
or copies what it is given exactly its worst, whatever the tokenizer, the padding, the batch and the
kind of model. Scorers that forget to shift, count padding or tokenise an answer without its space
give something in between, or the opposite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Literal, Protocol

import attrs

from editkit_core.efficiency import Stage
from editkit_core.metrics import engine
from editkit_core.metrics.ask import Ask, Replies
from editkit_core.metrics.context import MetricContext, token_counter
from editkit_core.metrics.judge import Case, one_by_one
from editkit_core.metrics.metric import AnyMetric, DerivedMetric, Metric, RunMetric
from editkit_core.metrics.registry import load_metrics
from editkit_core.metrics.report import Report, Row
from editkit_core.metrics.sampling import reference_weights
from editkit_core.metrics.texts import exact_match
from editkit_core.numerics.corpus import Corpus
from editkit_core.testing.oracles.network import Behaviour, oracle_model
from editkit_core.testing.oracles.tokenizers import TOKENIZER_STYLES, make_tokenizer
from editkit_core.testing.oracles.world import DERAILED, World, make_world

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.models.pairs import Side

__all__ = ["OracleCase", "OracleError", "all_cases", "check_metric", "check_metrics", "quick_cases"]

Expected = Literal["ideal", "worst"]


class OracleError(AssertionError):
    """A metric gave another score than the model that it measured deserves."""


class Answer(Protocol):
    """Answers asks with a model; by default `editkit_core.metrics.engine.answer`."""

    def __call__(
        self, model: EditableModel, asks: Iterable[Ask], *, rows: int, side: Side
    ) -> Replies:
        """Answer every ask, in batches of ``rows``, padded on ``side``."""


@attrs.frozen
class OracleCase:
    """One combination of what must not matter.

    Attributes:
        style: A name of `TOKENIZER_STYLES`.
        encoder_decoder: Whether the model has an encoder.
        eos_as_pad: Whether padding is EOS (a decoder's BOS too) rather than a token of its own.
        side: Where rows are padded.
        rows: Rows a batch.
        length: Tokens of the targets, 1 to 3; other answers have ``4 - length``.
    """

    style: str
    encoder_decoder: bool
    eos_as_pad: bool
    side: Side
    rows: int
    length: int

    def __str__(self) -> str:
        kind = "encoder-decoder" if self.encoder_decoder else "decoder"
        pad = "EOS" if self.eos_as_pad else "its own token"
        return (
            f"{kind}, tokenizer {self.style}, {self.side} padding with {pad}, batches of "
            f"{self.rows}, targets of {self.length}"
        )


def all_cases() -> tuple[OracleCase, ...]:
    """Return every combination."""
    sides: tuple[Side, ...] = ("right", "left")
    flags = (False, True)
    return tuple(
        OracleCase(*values)
        for values in product(TOKENIZER_STYLES, flags, flags, sides, (1, 7), (1, 3))
    )


def quick_cases() -> tuple[OracleCase, ...]:
    """Return some, in which any two values of two things still meet at least once."""
    chosen = []
    for i, (style, encoder_decoder) in enumerate(product(TOKENIZER_STYLES, (False, True))):
        a, b, c = i & 1, i >> 1 & 1, i >> 2 & 1
        for flip in (0, 1):
            sides: tuple[Side, Side] = ("right", "left")
            chosen.append(
                OracleCase(
                    style,
                    encoder_decoder,
                    bool(a ^ b ^ flip),
                    sides[b ^ flip],
                    (1, 7)[c ^ flip],
                    (1, 3)[a ^ c ^ flip ^ (encoder_decoder and b)],
                )
            )
    return tuple(chosen)


@attrs.frozen
class _World:
    """What the model is before and after, and what a metric is to say of it."""

    name: str
    before: str
    after: str
    expected: Expected


_WORLDS = (
    _World("is always right", "new", "new", "ideal"),
    _World("is never right after the edit", "new", "never", "worst"),
    _World("copies its input after the edit", "new", "copies", "worst"),
    _World("is right only after the edit", "old", "new", "ideal"),
    _World("is right and differs outside the answers after the edit", "new", "talks_on", "ideal"),
)
_STAGES = (Stage(name="locate", wall_s=0.5, peak_bytes=2**20, device_peak_bytes=2**10),)


def check_metric(
    metric: AnyMetric,
    *,
    cases: Sequence[OracleCase] | None = None,
    answer: Answer = engine.answer,
) -> int:
    """Check one metric; see `check_metrics`."""
    return check_metrics((metric,), cases=cases, answer=answer)


def check_metrics(
    metrics: Sequence[AnyMetric],
    *,
    cases: Sequence[OracleCase] | None = None,
    answer: Answer = engine.answer,
) -> int:
    """Check that metrics give exactly the score that models of known ability deserve.

    A metric says by `MetricInfo.ideal` and `MetricInfo.worst` what that is; one that leaves them
    out must still give finite scores that do not depend on batch and padding.

    Args:
        metrics: The metrics. A derived one is checked through its parts.
        cases: Which combinations; `quick_cases` by default.
        answer: What answers the asks, to check a scorer of your own.

    Returns:
        How many rows were checked.

    Raises:
        OracleError: A score is wrong; the message names metric, model and combination.
    """
    metrics = _with_parts(metrics)
    chosen = quick_cases() if cases is None else cases
    return sum(_check_case(metrics, case, answer) for case in chosen)


def _with_parts(metrics: Sequence[AnyMetric]) -> tuple[AnyMetric, ...]:
    names = {metric.info.name for metric in metrics}
    derived = [metric for metric in metrics if isinstance(metric, DerivedMetric)]
    missing = dict.fromkeys(p for metric in derived for p in metric.parts if p not in names)
    return (*metrics, *(load_metrics(missing) if missing else ()))


def _check_case(metrics: Sequence[AnyMetric], case: OracleCase, answer: Answer) -> int:
    world = make_world(case.length)
    models = _models(case.style, case.eos_as_pad, case.encoder_decoder, case.length)
    models["new"].tokenizer.padding_side = case.side  # shared by all; for scorers that read it
    context = _context(models["new"], world)
    usable = [m for m in metrics if not (case.encoder_decoder and m.info.protocols == ("text",))]
    of_requests = [metric for metric in usable if isinstance(metric, Metric)]
    asks = [a for m in of_requests for r in world.requests for a in m.asks(r, context)]
    replies = {
        state: answer(model, asks, rows=case.rows, side=case.side)
        for state, model in models.items()
    }
    n = 0
    for situation in _WORLDS:
        rows: list[Row] = []
        for metric in of_requests:
            mine = _rows(metric, world, replies, situation, context)
            _check_rows(metric, mine, situation, case)
            rows += mine
        for run_metric in (metric for metric in usable if isinstance(metric, RunMetric)):
            found = list(run_metric.measure(models[situation.after], None, context))
            _check_rows(run_metric, found, situation, case)
            rows += found
        for derived in (metric for metric in usable if isinstance(metric, DerivedMetric)):
            _check_derived(derived, rows, situation, case)
        n += len(rows)
    _check_batches(of_requests, world, models, replies, context, case, answer)
    return n


def _rows(
    metric: Metric,
    world: World,
    replies: Mapping[str, Replies],
    situation: _World,
    context: MetricContext,
) -> list[Row]:
    before, after = replies[situation.before], replies[situation.after]
    return [
        row
        for index, request in enumerate(world.requests)
        for row in metric.rows(index, request, before, after, context)
    ]


def _check_rows(
    metric: AnyMetric, rows: Sequence[Row], situation: _World, case: OracleCase
) -> None:
    info = metric.info
    if not rows:
        raise OracleError(f"{info.name} gave no row ({case}).")
    silent = set(info.protocols) - {row.protocol for row in rows}
    if silent:
        raise OracleError(f"{info.name} gave no row by {', '.join(sorted(silent))} ({case}).")
    for row in rows:
        if (row.metric, row.unit, row.higher_is_better) != (
            info.name,
            info.unit,
            info.higher_is_better,
        ) or row.protocol not in info.protocols:
            raise OracleError(f"{info.name} gave a row that contradicts its info: {row!r:.300}")
        if not (math.isfinite(row.before) and math.isfinite(row.after)):
            raise OracleError(f"{info.name} gave a score that is not finite: {row!r:.300}")
        wanted = getattr(info, situation.expected)
        if wanted is not None and row.after != wanted:
            raise OracleError(
                f"{info.name} by {row.protocol} is {row.after!r} for a model that "
                f"{situation.name}; it must be {wanted!r} exactly. Prompt {row.prompt!r}, "
                f"answer {row.expected!r} ({case})."
            )
        if wanted is not None and situation.before == situation.after and row.before != wanted:
            raise OracleError(
                f"{info.name} by {row.protocol} is {row.before!r} before the edit for a model that "
                f"{situation.name}; it must be {wanted!r} exactly ({case})."
            )


def _check_derived(
    metric: DerivedMetric, rows: Sequence[Row], situation: _World, case: OracleCase
) -> None:
    found = [s for s in Report(tuple(rows)).scores((metric,)) if s.metric == metric.info.name]
    if not found:
        raise OracleError(f"{metric.info.name} was not derived from {metric.parts} ({case}).")
    wanted = getattr(metric.info, situation.expected)
    if wanted is not None and found[0].after != wanted:
        raise OracleError(
            f"{metric.info.name} is {found[0].after!r} for a model that {situation.name}; it must "
            f"be {wanted!r} exactly ({case})."
        )


def _check_batches(
    metrics: Sequence[Metric],
    world: World,
    models: Mapping[str, EditableModel],
    replies: Mapping[str, Replies],
    context: MetricContext,
    case: OracleCase,
    answer: Answer,
) -> None:
    """Compare what has no known score with the same, asked one by one."""
    open_ended = [metric for metric in metrics if metric.info.ideal is None]
    asks = [a for m in open_ended for r in world.requests for a in m.asks(r, context)]
    if not asks:
        return
    alone = {state: answer(model, asks, rows=1, side="right") for state, model in models.items()}
    for metric, situation in product(open_ended, _WORLDS):
        if _rows(metric, world, alone, situation, context) != _rows(
            metric, world, replies, situation, context
        ):
            raise OracleError(
                f"{metric.info.name} depends on batch or padding for a model that "
                f"{situation.name} ({case})."
            )


@cache
def _models(
    style: str, eos_as_pad: bool, encoder_decoder: bool, length: int
) -> Mapping[str, EditableModel]:
    world = make_world(length)
    # No encoder-decoder that says BOS stops at it, so there BOS is not EOS.
    tokenizer = make_tokenizer(style, world.words, eos_as_pad, eos_as_pad and not encoder_decoder)
    # At padding, right models say different wrong things, and wrong ones what would look right.
    states: tuple[tuple[str, Mapping[str, str], Behaviour, str | None], ...] = (
        ("old", world.old, "knows", world.words[0]),
        ("new", world.new, "knows", DERAILED),
        ("talks_on", world.new, "talks_on", world.words[0]),
        ("never", {}, "never", None),
        ("copies", {}, "copies", DERAILED),
    )
    return {
        state: oracle_model(
            tokenizer,
            known,
            world.documents,
            behaviour=behaviour,
            encoder_decoder=encoder_decoder,
            at_padding=at_padding,
        )
        for state, known, behaviour, at_padding in states
    }


def _context(model: EditableModel, world: World) -> MetricContext:
    def decide(case: Case) -> bool:
        return exact_match(case.text, case.answers)

    count: Callable[[str, str], int] = token_counter(model)
    return MetricContext(
        judge=one_by_one(decide),
        requests=world.requests,
        tfidf=reference_weights(world.requests),
        corpus=Corpus.of(world.documents, "oracle"),
        stages=_STAGES,
        length=24,
        count=count,
    )
