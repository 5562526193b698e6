"""The summary of runs made by hand, against means worked out by hand."""

from __future__ import annotations

import pytest

from editkit_core.bench.reading import Run
from editkit_core.bench.record import Failure, Unit
from editkit_core.bench.summary import summarise
from editkit_core.metrics.registry import load_metrics
from editkit_core.metrics.report import Facts, Measured, Row


def row(request: int, after: float, metric: str = "reliability", protocol: str = "gen_em") -> Row:
    return Row(
        request=request,
        metric=metric,
        protocol=protocol,  # type: ignore[arg-type]  # one of the protocols
        prompt="p",
        expected="e",
        before=0.0,
        after=after,
    )


def unit(number: int, *rows: Row, failed: bool = False) -> Unit:
    return Unit(
        unit=number,
        stage="after_edit",
        requests=[str(number)],
        indices=[number],
        seconds={"compute_delta": float(number)},
        peak_bytes={"compute_delta": 100 * number},
        error=Failure(code="EK-E01", message="no") if failed else None,
        measured=Measured(rows, Facts(patches=("ek-1",))),
    )


def test_a_unit_comes_back_from_its_line() -> None:
    made = unit(3, row(3, 0.5))
    line = made.to_line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Unit.from_line(line) == made
    failed = unit(4, failed=True)
    assert Unit.from_line(failed.to_line()) == failed


def test_means_are_over_requests_and_failed_edits_have_no_part_in_them() -> None:
    units = (
        unit(0, row(0, 1.0), row(0, 0.0)),  # one request with two probes counts once
        unit(1, row(1, 1.0)),
        unit(2, failed=True),
    )
    summary = summarise(Run({"units": 4, "plan": {"seed": 0}}, units))
    (score,) = summary["scores"]
    assert score["after"] == pytest.approx((0.5 + 1.0) / 2)
    assert score["n"] == 2
    assert score["after_interval"] == [0.5, 1.0]  # of two requests, resamples reach both ends
    assert (summary["edits"], summary["failed"], summary["finished"]) == (3, 1, False)
    assert summary["failures"] == {"EK-E01": 1}
    assert summary["median_seconds"] == {"compute_delta": 0.5}
    assert summary["peak_bytes"] == {"compute_delta": 200}


def test_one_request_has_no_interval() -> None:
    summary = summarise(Run({"units": 1}, (unit(0, row(0, 1.0)),)))
    assert summary["finished"] is True
    assert summary["scores"][0]["after_interval"] is None


def test_a_score_of_scores_has_the_interval_of_what_it_is_computed_from() -> None:
    names = ("efficacy_score", "paraphrase_score", "neighborhood_score")
    afters = {"efficacy_score": 1.0, "paraphrase_score": 0.5, "neighborhood_score": 0.8}
    units = tuple(
        unit(i, *(row(i, afters[name], name, "tf_contrastive") for name in names)) for i in range(3)
    )
    derived = load_metrics(["counterfact_score"])
    summary = summarise(Run({"units": 3}, units), derived)  # type: ignore[arg-type]  # it is one
    (score,) = (s for s in summary["scores"] if s["metric"] == "counterfact_score")
    harmonic = 3 / (1 / 1.0 + 1 / 0.5 + 1 / 0.8)
    assert score["after"] == pytest.approx(harmonic)
    assert score["after_interval"] == pytest.approx([harmonic, harmonic])
