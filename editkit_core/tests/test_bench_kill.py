"""Processes that really die: a killed run goes on, and sweeps run in processes of their own."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest
from bench_runs import comparable, install_nudge, record, save_model, write_requests
from fake_distributions import FakeSite

from editkit_core.bench import Plan, read_run, read_sweep, run, run_sweep

COUNT = 14
PATIENCE_S = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def plan(site: FakeSite, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    install_nudge(site)
    monkeypatch.setenv("PYTHONPATH", str(site.folder))
    records = [record(i) for i in range(COUNT)]
    records[4] = record(4, subject="Nobody")
    data = write_requests(tmp_path / "facts.jsonl", records)
    return Plan(model=str(model), dataset=f"requests:{data}", method="nudge")


def start(plan: Plan, out: Path) -> subprocess.Popen[bytes]:
    """Start the run by its command line, slowed down so that it can be hit in the middle."""
    flags = ["--model", plan.model, "--dataset", plan.dataset, "--method", plan.method]
    return subprocess.Popen(
        [
            sys.executable, "-c", "from editkit_core.cli import main; main()",
            "bench", *flags, "--scenario", plan.scenario, "--out", str(out), "--json",
        ],
        env={**os.environ, "NUDGE_SLEEP": "0.1"},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def kill_after(process: subprocess.Popen[bytes], out: Path, lines: int, wait_s: float) -> None:
    """Kill -9 once so many units are written, some moments later."""
    path, end = out / "rows.jsonl", time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.005)
    time.sleep(wait_s)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def check_killed(plan: Plan, tmp_path: Path, kills: list[tuple[int, float]]) -> None:
    whole = run(plan, tmp_path / "whole")
    out = tmp_path / "killed"
    for lines, wait_s in kills:
        kill_after(start(plan, out), out, lines, wait_s)
        assert lines <= len(read_run(out).units) < len(whole.run.units)
    ended = run(plan, out)
    assert ended.resumed >= kills[-1][0]
    assert comparable(ended.run) == comparable(whole.run)
    assert ended.summary["scores"] == whole.summary["scores"]
    assert ended.summary["failed"] == 1


def test_a_run_killed_in_the_middle_ends_with_the_rows_of_one_that_was_not(
    plan: Plan, tmp_path: Path
) -> None:
    check_killed(attrs.evolve(plan, scenario="sequential"), tmp_path, [(7, 0.03)])


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["single", "batch:2", "sequential:5", "stacked"])
def test_a_run_killed_at_random_moments_ends_with_the_same_rows(
    plan: Plan, tmp_path: Path, scenario: str
) -> None:
    rng = random.Random(scenario)
    last = 6 if scenario == "batch:2" else 12
    lines = sorted(rng.sample(range(1, last), 4))
    kills = [(count, rng.uniform(0, 0.08)) for count in lines]
    check_killed(attrs.evolve(plan, scenario=scenario), tmp_path, kills)


def test_a_sweep_runs_in_processes_and_one_that_fails_stops_no_other(
    plan: Plan, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"models: {plan.model}\ndatasets: '{plan.dataset}'\nlimit: 3\nmethods:\n"
        "  - {name: strong, method: nudge, params: {size: 1.0}}\n"
        "  - {name: broken, method: nudge, params: {sise: 1.0}}\n",
        encoding="utf-8",
    )
    sweep = read_sweep(file)
    good, bad = run_sweep(sweep, tmp_path / "out", workers=2)
    assert good.summary is not None
    assert (good.summary["finished"], good.summary["edits"]) == (True, 3)
    assert (bad.summary, bad.code) == (None, "EK-H01")
    alone = run(sweep.plans[good.name], tmp_path / "alone")
    assert comparable(read_run(tmp_path / "out" / good.name)) == comparable(alone.run)
