from __future__ import annotations

import json
from typing import Any

import pytest

from editkit_core.metrics.report import Facts, Measured, Report, Row, merge_reports


def row(after: float, *, request: int = 0, before: float = 0.0, **more: Any) -> Row:
    values = {"metric": "reliability", "protocol": "tf_token", "prompt": "p", "expected": "e"}
    return Row(**{**values, **more}, request=request, before=before, after=after)


def test_a_request_with_many_probes_counts_as_much_as_one_with_few() -> None:
    report = Report((row(1.0), row(1.0), row(0.0), row(1.0), row(0.0, request=1)))
    score = report.score("reliability")
    assert score.after == (3 / 4 + 0) / 2  # the mean of all five rows would be 0.6
    assert score.n == 2


def test_before_and_after_are_averaged_alike() -> None:
    report = Report((row(1.0, before=0.5), row(1.0, before=0.0), row(1.0, before=1.0, request=1)))
    assert report.score("reliability").before == (0.25 + 1.0) / 2


def test_protocols_are_never_mixed() -> None:
    report = Report((row(1.0), row(0.0, protocol="gen_em"), row(0.0, protocol="gen_contains")))
    assert {(s.protocol, s.after) for s in report.scores()} == {
        ("tf_token", 1.0),
        ("gen_em", 0.0),
        ("gen_contains", 0.0),
    }
    assert report.score("reliability", protocol="gen_em").after == 0.0


def test_probe_types_are_never_mixed() -> None:
    report = Report(
        (
            row(1.0, metric="locality", probe="near_name"),
            row(0.0, metric="locality", probe="same_subject"),
        )
    )
    assert report.score("locality", "near_name").after == 1.0
    assert report.score("locality", "same_subject").after == 0.0


def test_a_request_without_such_probes_does_not_count() -> None:
    report = Report((row(1.0), row(1.0, request=1), row(0.5, request=1, metric="portability")))
    assert report.score("portability").n == 1
    assert report.score("portability").after == 0.5


def test_what_was_not_measured_is_not_zero() -> None:
    with pytest.raises(KeyError):
        Report((row(1.0),)).score("fluency")
    assert Report(()).scores() == ()


def test_merged_reports_keep_their_requests_apart() -> None:
    merged = merge_reports(
        [Report((row(1.0), row(0.0, request=1))), Report(()), Report((row(0.0),))]
    )
    assert [r.request for r in merged.rows] == [0, 1, 2]
    assert merged.score("reliability").after == pytest.approx(1 / 3)


def test_a_report_is_plain_json() -> None:
    report = Report((row(1.0),))
    again = json.loads(json.dumps(report.to_dict()))
    assert again["scores"][0]["after"] == 1.0
    assert again["rows"][0]["prompt"] == "p"


def facts() -> Facts:
    return Facts(
        target_policy="alt", seed=3, model="ab" * 32, patches=("p1",), versions={"torch": "2"}
    )


def test_a_record_comes_back_as_it_was() -> None:
    rows = (row(1.0, text_after="Lima"), row(2.5, unit="nat", higher_is_better=False))
    measured = Measured(rows, facts())
    record = json.loads(json.dumps(measured.to_record()))
    assert Measured.from_record(record) == measured
    assert "text_before" not in record["rows"][0]
    assert "unit" not in record["rows"][0]


def test_every_joined_row_carries_the_facts() -> None:
    measured = Measured((row(1.0), row(0.0)), facts())
    for joined in measured.joined():
        for name in ("protocol", "target_policy", "seed", "model", "patches", "versions"):
            assert joined[name]


def test_scores_carry_the_unit_and_direction_of_their_rows() -> None:
    report = Report((row(2.0, unit="nat", higher_is_better=False),))
    (score,) = report.scores()
    assert (score.unit, score.higher_is_better) == ("nat", False)
