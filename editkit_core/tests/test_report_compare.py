"""`editkit compare` and `editkit report` on run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_distributions import run_python
from run_folders import failed_unit, row, unit, write_run, write_story

from editkit_core import cli
from editkit_core.errors import InvalidParameterError
from editkit_core.report.paired import Comparison, Difference, compare_runs
from editkit_core.report.runs import read_runs
from editkit_core.report.scores import Key

RELIABILITY = Key("reliability", "", "tf_token")


def compare(first: Path, second: Path, **options: Any) -> Comparison:
    one, two = read_runs([first, second])
    return compare_runs(one, two, **options)


def run_of(folder: Path, scores: dict[int, float], *more: dict[str, Any], **meta: Any) -> Path:
    units = [unit(n, [row(i, after=score)]) for n, (i, score) in enumerate(scores.items())]
    return write_run(folder, [*units, *more], **meta)


def only(found: Comparison) -> Difference:
    (difference,) = found.differences
    return difference


def main(*arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code


# -- differences --


def test_the_difference_is_of_the_requests_that_both_have(tmp_path: Path) -> None:
    first = run_of(tmp_path / "a", {0: 0.0, 1: 0.5, 2: 1.0})
    second = run_of(tmp_path / "b", {1: 1.0, 2: 1.0, 3: 0.0, 4: 0.0})
    found = compare(first, second)
    assert (found.requests, found.only_first, found.only_second) == (2, 1, 2)
    difference = only(found)
    assert (difference.first, difference.second) == (0.75, 1.0)
    assert (difference.difference.value, difference.difference.n) == (0.25, 2)


def test_requests_are_matched_by_name_and_not_by_place(tmp_path: Path) -> None:
    first = write_run(
        tmp_path / "a",
        [unit(i, [row(i, after=float(i))], requests=[name]) for i, name in enumerate("xy")],
    )
    second = write_run(
        tmp_path / "b",
        [unit(i, [row(i, after=1.0 - i)], requests=[name]) for i, name in enumerate("yx")],
    )
    difference = only(compare(first, second)).difference
    assert (difference.value, difference.is_flat) == (0.0, True)


def test_a_clear_gain_is_better_and_chance_is_not(tmp_path: Path) -> None:
    low = run_of(tmp_path / "low", {i: float(i % 5 == 0) for i in range(60)})
    high = run_of(tmp_path / "high", {i: float(i % 5 != 0) for i in range(60)})
    other = run_of(tmp_path / "other", {i: float(i % 5 == 1) for i in range(60)})
    assert only(compare(low, high)).better == "b"
    assert only(compare(high, low)).better == "a"
    assert only(compare(low, other)).better is None


def test_where_lower_is_better_the_lower_run_is(tmp_path: Path) -> None:
    def drift(folder: Path, value: float) -> Path:
        rows = [row(i, "drift", after=value + i / 100, higher_is_better=False) for i in range(20)]
        return write_run(folder, [unit(i, [each]) for i, each in enumerate(rows)])

    assert only(compare(drift(tmp_path / "a", 1.0), drift(tmp_path / "b", 2.0))).better == "a"


def test_swapping_the_runs_turns_the_difference_round(tmp_path: Path) -> None:
    one = write_story(tmp_path / "rome", "rome", edits=30, skill=0.9, damage=0.1)
    two = write_story(tmp_path / "memit", "memit", edits=30, skill=0.6, damage=0.05)
    there, back = compare(one, two), compare(two, one)
    assert {d.key for d in there.differences} == {d.key for d in back.differences}
    assert any(d.key.metric == "counterfact_score" for d in there.differences)
    again = {difference.key: difference for difference in back.differences}
    for difference in there.differences:
        turned = again[difference.key].difference
        assert difference.difference.value == pytest.approx(-turned.value)
        assert difference.difference.low == pytest.approx(-(turned.high or 0.0))


def test_a_run_compared_with_itself_does_not_differ(tmp_path: Path) -> None:
    folder = write_story(tmp_path / "rome", "rome", edits=20, skill=0.8, damage=0.1)
    run, again = read_runs([folder]), read_runs([folder])
    found = compare_runs(run[0], again[0])
    assert {difference.difference.value for difference in found.differences} == {0.0}
    assert {difference.better for difference in found.differences} == {None}


def test_edits_that_failed_in_one_run_are_not_compared_and_told(tmp_path: Path) -> None:
    first = run_of(tmp_path / "a", {0: 1.0, 1: 1.0})
    second = run_of(tmp_path / "b", {0: 1.0}, failed_unit(1))
    found = compare(first, second)
    assert (found.requests, found.only_first) == (1, 1)
    assert any("1 edits could not be made" in remark for remark in found.remarks)


def test_what_one_run_alone_measured_is_told(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", [unit(0, [row(0), row(0, "portability", probe="hop")])])
    second = run_of(tmp_path / "b", {0: 1.0})
    found = compare(first, second)
    assert found.unmatched == (("a", "after_edit", Key("portability", "hop", "tf_token")),)


# -- refusals --


@pytest.mark.parametrize(
    ("meta", "what"),
    [
        ({"dataset": {"digest": "other"}}, "data set digest"),
        ({"dataset": {"target_policy": "true"}}, "target policy"),
        ({"plan": {"scenario": "batch:10"}}, "scenario"),
    ],
)
def test_runs_of_different_data_or_scenario_are_refused_and_it_is_said_which(
    tmp_path: Path, meta: dict[str, Any], what: str
) -> None:
    first = run_of(tmp_path / "a", {0: 1.0})
    second = run_of(tmp_path / "b", {0: 1.0}, **meta)
    with pytest.raises(InvalidParameterError, match=f"their {what} differs"):
        compare(first, second)


def test_runs_of_different_protocols_are_refused_until_one_is_named(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", [unit(0, [row(0), row(0, protocol="gen_em")])])
    second = run_of(tmp_path / "b", {0: 1.0})
    with pytest.raises(InvalidParameterError, match=r"protocols differs.*gen_em, tf_token"):
        compare(first, second)
    assert only(compare(first, second, protocols=["tf_token"])).key == RELIABILITY
    third = run_of(tmp_path / "c", {0: 1.0})
    with pytest.raises(InvalidParameterError, match="has scores of gen_em"):
        compare(second, third, protocols=["gen_em"])


def test_runs_without_a_request_in_common_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="No request is in both"):
        compare(run_of(tmp_path / "a", {0: 1.0}), run_of(tmp_path / "b", {1: 1.0}))


# -- the command line --


def test_compare_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_of(tmp_path / "a", dict.fromkeys(range(12), 0.0))
    second = run_of(tmp_path / "b", {i: float(i > 1) for i in range(12)}, plan={"method": "memit"})
    assert main("compare", first, second) == 0
    out = capsys.readouterr().out
    assert "B: memit on editkit:demo (b)" in out
    assert "+83.3 %" in out
    assert main("compare", first, second, "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["requests"] == 12
    (difference,) = plain["differences"]
    assert difference["better"] == "b"
    assert difference["low"] <= difference["difference"] == pytest.approx(10 / 12)
    assert plain["a"]["dataset_digest"] == plain["b"]["dataset_digest"]


def test_compare_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "runs" / "a", {0: 1.0})
    run_of(tmp_path / "runs" / "b", {0: 1.0})
    assert main("compare", run, tmp_path / "none") == 1
    assert "There is no folder" in capsys.readouterr().err
    assert main("compare", run, tmp_path / "runs") == 1
    assert "holds 2 runs" in capsys.readouterr().err
    assert main("compare", run, run, "--protocol", "gen_emm") == 1
    assert "Did you mean 'gen_em'" in capsys.readouterr().err
    assert main("compare", run) == 2


@pytest.mark.parametrize(
    ("name", "begin"), [("r.html", "<!DOCTYPE"), ("r.md", "#"), ("r.csv", "run,")]
)
def test_report_writes_the_kind_of_file_that_is_named(
    tmp_path: Path, name: str, begin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "a", {0: 1.0, 1: 0.0})
    out = tmp_path / name
    assert main("report", run, "--out", out, "--title", "Ours") == 0
    assert out.read_text(encoding="utf-8").lstrip().startswith(begin)
    assert "1 run." in capsys.readouterr().out
    assert main("report", run, "--out", out) == 1
    assert "--force" in capsys.readouterr().err
    assert main("report", run, "--out", out, "--force") == 0


def test_report_without_out_prints_tables_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "a", {i: float(i % 2) for i in range(10)})
    assert main("report", run) == 0
    assert "Teacher-forced tokens (tf_token)" in capsys.readouterr().out
    assert main("report", run, "--json") == 0
    ((score,),) = [one["scores"] for one in json.loads(capsys.readouterr().out)["runs"]]
    assert (score["metric"], score["n"], score["after"]) == ("reliability", 10, 0.5)


def test_report_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "a", {0: 1.0})
    assert main("report") == 2
    capsys.readouterr()
    assert main("report", run, "--out", tmp_path / "r.pdf") == 1
    assert "ends in none of them" in capsys.readouterr().err
    assert main("report", run, "--out", tmp_path / "no" / "r.html") == 1
    assert "EK-F02" in capsys.readouterr().err
    (run / "run.json").write_text("{", encoding="utf-8")
    assert main("report", run) == 1
    assert "run.json" in capsys.readouterr().err
    (run / "run.json").write_text('{"spec": "other/9"}', encoding="utf-8")
    assert main("report", run) == 1
    assert "other/9" in capsys.readouterr().err


def test_a_damaged_line_in_the_middle_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "a", {0: 1.0, 1: 1.0})
    lines = (run / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "rows.jsonl").write_text(f"{lines[0]}nonsense\n{lines[1]}", encoding="utf-8")
    assert main("report", run) == 1
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["report", "compare"])
def test_help_imports_nothing_heavy(module: str) -> None:
    heavy = ("torch", "transformers", "numpy", "matplotlib", "jinja2")
    code = (
        f"import sys, editkit_core.cli.commands.{module}; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = run_python("-c", code)
    assert done.stdout == "[]\n", done.stderr


def test_a_report_is_made_without_torch(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", {0: 1.0, 1: 0.0})
    out = tmp_path / "r.html"
    code = (
        "import sys; from editkit_core.cli import main\n"
        f"try: main(['report', {str(run)!r}, '--out', {str(out)!r}])\n"
        "except SystemExit as error: print(error.code, 'torch' in sys.modules)"
    )
    done = run_python("-c", code)
    assert done.stdout.endswith("0 False\n"), done.stderr
