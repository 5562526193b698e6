"""What a report makes of runs: means, groups, curves, relations, failures, costs, papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_folders import failed_unit, row, unit, write_run, write_sequence, write_story

from editkit_core.errors import InputNotFoundError
from editkit_core.metrics.published import published_scores
from editkit_core.metrics.report import Report
from editkit_core.report.catalogue import Catalogue
from editkit_core.report.document import Document, make_document
from editkit_core.report.runs import read_runs
from editkit_core.report.scores import Key


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load()


def document(*folders: Path, catalogue: Catalogue | None = None) -> Document:
    return make_document(read_runs(folders), catalogue=catalogue)


def rows_unit(number: int, *rows: dict[str, Any], **values: Any) -> dict[str, Any]:
    return unit(number, rows, **values)


# -- scores --


def test_means_are_those_of_the_report_of_rows(tmp_path: Path, catalogue: Catalogue) -> None:
    folder = write_story(tmp_path / "r", "rome", edits=25, skill=0.8, damage=0.1)
    (run,) = read_runs([folder])
    (member,) = document(folder, catalogue=catalogue).members
    expected = Report(run.rows("after_edit")).scores(catalogue.derived)
    found = member.scores["after_edit"]
    assert len(found) == len(expected)
    for score in expected:
        mine = found[Key(score.metric, score.probe, score.protocol)]
        assert mine.after.value == pytest.approx(score.after, abs=1e-12)
        assert mine.before.value == pytest.approx(score.before, abs=1e-12)
        assert mine.after.n == score.n


def test_a_request_counts_once_however_many_probes_it_has(tmp_path: Path) -> None:
    many = [row(0, "locality", probe="near", prompt=f"p{i}", after=0.0) for i in range(9)]
    units = [rows_unit(0, *many), rows_unit(1, row(1, "locality", probe="near", after=1.0))]
    (member,) = document(write_run(tmp_path / "r", units)).members
    assert member.scores["after_edit"][Key("locality", "near", "tf_token")].after.value == 0.5


def test_costs_are_no_scores(tmp_path: Path) -> None:
    cost = row(0, "efficiency_seconds", protocol="run", unit="s", after=3.0)
    (member,) = document(write_run(tmp_path / "r", [rows_unit(0, row(0), cost)])).members
    assert {key.metric for key in member.scores["after_edit"]} == {"reliability"}


def test_rows_without_finite_scores_are_left_out_and_told(tmp_path: Path) -> None:
    units = [rows_unit(0, row(0), row(0, after=float("nan")), row(0, after="1"), row(0, prompt=7))]
    (member,) = document(write_run(tmp_path / "r", units)).members
    assert member.scores["after_edit"][Key("reliability", "", "tf_token")].after.value == 1.0
    assert any("3 rows" in remark for remark in member.remarks)


# -- groups --


def test_runs_are_side_by_side_only_where_model_data_answers_and_scenario_are_the_same(
    tmp_path: Path,
) -> None:
    units = [rows_unit(0, row(0))]
    folders = [
        write_run(tmp_path / "a", units),
        write_run(tmp_path / "b", units, plan={"method": "memit"}),
        write_run(tmp_path / "c", units, dataset={"digest": "other"}),
        write_run(tmp_path / "d", units, dataset={"target_policy": "true"}),
        write_run(tmp_path / "e", units, plan={"scenario": "batch:10"}),
        write_run(tmp_path / "f", units, model={"name": "x", "fingerprint": "y"}),
    ]
    groups = document(*folders).groups
    assert [[one.run.folder for one in group.members] for group in groups] == [
        ["a", "b"],
        ["c"],
        ["d"],
        ["e"],
        ["f"],
    ]


def test_runs_of_one_method_are_told_apart_by_folder(tmp_path: Path) -> None:
    for name in ("x/run", "y/run", "z"):
        write_run(tmp_path / name, [rows_unit(0, row(0))])
    found = document(tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "z")
    assert [one.label for one in found.members] == ["rome · run (1)", "rome · run (2)", "rome · z"]


def test_the_unedited_models_score_is_shown_once_only_if_the_runs_agree(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [rows_unit(0, row(0, before=0.25))])
    write_run(tmp_path / "b", [rows_unit(0, row(0, before=0.25))])
    write_run(tmp_path / "c", [rows_unit(0, row(0, before=0.75))])
    (same,) = document(tmp_path / "a", tmp_path / "b").groups
    (other,) = document(tmp_path / "a", tmp_path / "c").groups
    (line,) = same.stages[0].tables["tf_token"]
    assert line.before is not None
    assert line.before.value == 0.25
    assert other.stages[0].tables["tf_token"][0].before is None


# -- retention --


def test_a_curve_has_a_point_a_checkpoint_and_one_of_all_edits(tmp_path: Path) -> None:
    units: list[dict[str, Any]] = []
    for i in range(12):
        units.append(rows_unit(len(units), row(i, after=1.0)))
        at = i + 1
        stages = [f"checkpoint:{at}"] * (at in (1, 10)) + ["after_all"] * (at == 12)
        for stage in stages:
            rows = [row(j, after=1.0 if j < 6 else 0.0) for j in range(at)]
            units.append(unit(len(units), rows, stage=stage, seconds={}))
    (member,) = document(write_run(tmp_path / "r", units, plan={"scenario": "sequential"})).members
    (curve,) = member.curves
    assert [(p.edits, p.score.value) for p in curve.points] == [(1, 1.0), (10, 0.6), (12, 0.5)]
    assert curve.at_once is not None
    assert curve.at_once.value == 1.0


def test_of_sequences_that_start_anew_the_last_point_is_at_the_length_of_one(
    tmp_path: Path,
) -> None:
    units = []
    for sequence in (0, 1):
        for stage, size in (("checkpoint:1", 1), ("after_all", 4)):
            rows = [row(4 * sequence + i) for i in range(size)]
            units.append(unit(len(units), rows, stage=stage, sequence=sequence))
    folder = write_run(tmp_path / "r", units, plan={"scenario": "sequential:4"})
    (curve,) = document(folder).members[0].curves
    assert [point.edits for point in curve.points] == [1, 4]
    assert [point.score.n for point in curve.points] == [2, 8]


def test_single_edits_have_no_curve(tmp_path: Path) -> None:
    (member,) = document(write_run(tmp_path / "r", [rows_unit(0, row(0))])).members
    assert member.curves == ()


# -- relations --


def test_scores_by_relation_are_means_over_its_requests(tmp_path: Path) -> None:
    units = [
        rows_unit(i, row(i, after=float(i == 0)), relations=[relation])
        for i, relation in enumerate(("P36", "P36", "P103", None))
    ]
    (member,) = document(write_run(tmp_path / "r", units)).members
    key = Key("reliability", "", "tf_token")
    found = {one.relation: (one.requests, one.scores[key].after.value) for one in member.relations}
    assert found == {"P36": (2, 0.5), "P103": (1, 0.0)}


# -- failures --


def test_failures_are_the_farthest_from_right_and_say_what_was_said(tmp_path: Path) -> None:
    def asked(i: int, after: float, **values: Any) -> dict[str, Any]:
        texts = {"text_before": "old", "text_after": f"text {i}"}
        return row(i, protocol="gen_em", after=after, **texts, **values)

    units = [
        rows_unit(0, asked(0, 1.0)),
        rows_unit(1, asked(1, 0.0, before=0.0)),
        rows_unit(2, asked(2, 0.0, before=1.0)),
        rows_unit(3, asked(3, 0.5, before=0.5)),
    ]
    (member,) = document(write_run(tmp_path / "r", units)).members
    ((key, found),) = member.failures.items()
    assert key == Key("reliability", "", "gen_em")
    # First what the edit broke, then what stayed wrong, the farther first.
    assert [one.request for one in found] == ["case-2", "case-1", "case-3"]
    assert found[0].row.text_after == "text 2"


def test_of_equally_wrong_texts_the_one_that_no_protocol_likes_comes_first(tmp_path: Path) -> None:
    units = [
        rows_unit(
            i,
            row(i, protocol="gen_em", after=0.0, text_after="t"),
            row(i, protocol="gen_contains", after=contained, text_after="t"),
        )
        for i, contained in enumerate((1.0, 0.0))
    ]
    (member,) = document(write_run(tmp_path / "r", units)).members
    ((_, found),) = member.failures.items()
    assert [one.request for one in found] == ["case-1", "case-0"]


def test_what_should_stay_is_wanted_as_before(tmp_path: Path) -> None:
    kept = row(0, "locality", protocol="gen_em", before=1.0, after=0.0, text_after="x")
    (member,) = document(write_run(tmp_path / "r", [rows_unit(0, kept)])).members
    ((_, (failure,)),) = member.failures.items()
    assert failure.kept


def test_one_request_shows_one_probe_of_a_metric(tmp_path: Path) -> None:
    rows = [row(0, "generalization", prompt=f"p{i}", after=0.0) for i in range(4)]
    (member,) = document(write_run(tmp_path / "r", [rows_unit(0, *rows)])).members
    ((_, found),) = member.failures.items()
    assert len(found) == 1


# -- costs and remarks --


def test_costs_are_of_edits_that_were_made(tmp_path: Path) -> None:
    units = [
        rows_unit(i, row(i), seconds={"compute_edit": s}, peak_bytes={"compute_edit": 10 + i})
        for i, s in enumerate((1.0, 2.0, 6.0))
    ]
    folder = write_run(tmp_path / "r", [*units, failed_unit(3)])
    (member,) = document(folder).members
    (stage,) = member.costs.stages
    assert (stage.units, stage.median_s, stage.total_s) == (3, 2.0, 9.0)
    assert member.costs.host_bytes == {"compute_edit": 12.0}
    assert (member.costs.made, member.costs.failed) == (3, {"EK-E02": 1})
    assert any("1 edit (25.0 %) could not be made" in remark for remark in member.remarks)


def test_an_unfinished_run_says_so_and_a_torn_line_is_left(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", [rows_unit(0, row(0))], units=7, torn='{"unit": 1, "st')
    (member,) = document(folder).members
    assert any("not finished: 1 of 7" in remark for remark in member.remarks)


def test_skipped_records_are_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", [rows_unit(0, row(0))], dataset={"skipped": {"EK-R02": 4}})
    assert any("EK-R02 4 times" in remark for remark in document(folder).members[0].remarks)


def test_a_run_without_scores_is_a_run(tmp_path: Path) -> None:
    (member,) = document(write_run(tmp_path / "r", [failed_unit(0)])).members
    assert "There are no scores." in member.remarks


# -- papers --


def test_a_papers_number_stands_beside_the_same_methods_model_data_and_protocol(
    tmp_path: Path,
) -> None:
    paper = next(
        one
        for one in published_scores()
        if (one.method, one.dataset, one.metric) == ("rome", "zsre", "reliability")
        and one.scenario == "single"
    )
    unit_ = rows_unit(0, row(0), row(0, protocol="gen_em"))
    model = {"name": paper.models[0], "fingerprint": "f"}
    zsre = {"name": "zsre", "form": "mend", "target_policy": "counterfactual"}
    folder = write_run(tmp_path / "same", [unit_], dataset=zsre, model=model)
    found = document(folder).members[0].published
    key = Key("reliability", "", "tf_token")
    assert paper.value in [one.value for one in found[key]]
    assert Key("reliability", "", "gen_em") not in found

    def published(**changed: Any) -> dict[Key, Any]:
        given: dict[str, Any] = {"dataset": zsre, "model": model, "plan": {}, **changed}
        folder = write_run(tmp_path / "other", [unit_], **given)
        return document(folder).members[0].published

    assert published() == found
    assert published(plan={"method": "no-such"}) == {}
    assert published(plan={"scenario": "sequential"}) == {}
    assert published(dataset={**zsre, "target_policy": "true"}) == {}
    assert published(dataset={**zsre, "name": "mquake"}) == {}
    assert published(model={"name": "gpt2", "fingerprint": "f"}) == {}


# -- finding runs --


def test_a_folder_of_runs_stands_for_the_runs_in_it(tmp_path: Path) -> None:
    write_run(tmp_path / "b", [])
    write_run(tmp_path / "a", [])
    found = read_runs([tmp_path, tmp_path / "b"])
    assert [run.folder for run in found] == ["a", "b"]


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_without_runs_is_refused(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
    with pytest.raises(InputNotFoundError, match="empty"):
        read_runs([folder])


def test_a_sequential_run_has_tables_of_both_ends_but_not_of_checkpoints(tmp_path: Path) -> None:
    folder = write_sequence(tmp_path / "s", "rome", edits=11, skill=0.9, loss=0.5)
    (group,) = document(folder).groups
    assert [stage.name for stage in group.stages] == ["after_edit", "after_all"]
    assert group.caution
