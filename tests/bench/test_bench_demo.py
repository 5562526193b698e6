"""``editkit bench`` with ROME on the packaged model, by its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from editkit_core.bench import read_run

QUICK = ("--set", "v_steps=4", "--set", "covariance=identity")
BENCH = ("bench", "--model", "editkit:demo", "--dataset", "demo:2", *QUICK)


def test_a_run_is_made_and_made_again_without_doing_anything(cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ran = cli(*BENCH, "--out", out, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["edits"], ran.json["failed"], ran.json["resumed"]) == (2, 0, 0)
    wanted = {s["metric"] for s in ran.json["scores"]}
    assert {"reliability", "generalization", "locality"} <= wanted
    assert read_run(out).finished
    again = cli(*BENCH, "--out", out)
    assert again.code == 0, again.err
    assert "Went on after 2 units" in again.out
    assert "reliability" in again.out
    other = cli(*BENCH, "--seed", "1", "--out", out)
    assert other.code == 1
    assert "EK-F01" in other.err
    assert "seed 0 there, 1 here" in other.err


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(cli, tmp_path: Path) -> None:
    ran = cli(*BENCH, "--scenario", "stacked", "--out", tmp_path / "run", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["requests"], ran.json["edits"], ran.json["measured"]) == (2, 2, 5)
    assert ran.json["seconds"] > ran.json["edit_s"] > 0
    assert ran.json["weights_bytes"] < ran.json["peak_bytes"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--scenario", "twice"), 1, "EK-H02"),
        (("--dataset", "zsre:none.json"), 1, "EK-F03"),
        (("--dataset", "demos:3"), 1, "EK-R04"),
        (("--metrics", "reliabilty"), 1, "Did you mean 'reliability'"),
        (("--method", "romi"), 1, "EK-G01"),
        (("--protocols", "tf"), 1, "EK-H02"),
        (("--judge", "a-model"), 1, "--judge-url"),
        (("--sweep", "sweep.yaml"), 2, "With --sweep"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    cli, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    ran = cli(*BENCH, "--out", tmp_path / "run", *arguments)
    assert ran.code == code
    assert says in ran.err
    assert not (tmp_path / "run" / "run.json").exists()


def test_model_data_set_and_folder_must_be_given(cli, tmp_path: Path) -> None:
    for arguments, says in (
        (("--dataset", "demo:1", "--out", "run"), "--model"),
        (("--model", "editkit:demo", "--out", "run"), "--dataset"),
        (("--model", "editkit:demo", "--dataset", "demo:1"), "--out"),
    ):
        ran = cli("bench", *arguments)
        assert ran.code == 2
        assert says in ran.err


def test_a_folder_with_something_else_is_refused(cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x", encoding="utf-8")
    for extra in ((), ("--json",)):
        ran = cli(*BENCH, "--out", tmp_path / "mine", *extra)
        assert ran.code == 1
        assert "thesis.tex" in ran.err + ran.out
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("models: editkit:demo\ndatasets: demo:1\n", encoding="utf-8")
    ran = cli("bench", "--sweep", sweep, "--out", tmp_path / "mine")
    assert (ran.code, "EK-F01" in ran.err) == (1, True)


def test_bench_on_counterfact_with_a_real_model_counts_what_it_skips(
    cli, tmp_path: Path, data_dir: Path
) -> None:
    file = next((data_dir / "counterfact").glob("*dev331*"))
    ran = cli(
        "bench", "--model", data_dir / "models" / "stories260k", "--dataset",
        f"counterfact:{file}", "--limit", "2", *QUICK, "--out", tmp_path / "run",
        "--protocols", "tf_token", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err + ran.out
    meta = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (meta["dataset"]["records"], meta["dataset"]["requests"]) == (331, 2)
    assert {s["protocol"] for s in ran.json["scores"]} == {"tf_token"}
