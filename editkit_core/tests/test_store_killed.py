"""Writers of a stack are killed: whatever the moment, the folder holds one whole version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import store_writers


@pytest.fixture(autouse=True)
def _prepared(tmp_path: Path) -> None:
    store_writers.prepare(tmp_path)


def run(*arguments: object) -> dict[str, Any]:
    """Run the script and return what it saw; the first thing that does not hold ends it."""
    done = subprocess.run(
        [sys.executable, store_writers.__file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_writer_killed_at_any_call_leaves_the_state_before_or_after(tmp_path: Path) -> None:
    seen = run("every", tmp_path)
    # A push writes four files: each is opened, flushed, renamed, and its folder flushed.
    assert seen["moments of push"] >= 16
    assert seen["moments of gc"] >= 4
    assert seen["lock files behind"] > 0
    assert seen["objects of nobody"] > 0
    assert seen["history of nobody"] > 0


def test_three_writers_killed_at_random_moments_break_nothing(tmp_path: Path) -> None:
    seen = run("random", tmp_path, "--rounds", 300)
    assert seen["killed"] >= 300
    assert seen["generation"] > 0
    assert seen["temporary files of nobody"] > 0  # so the kills did fall into the writing


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_three_writers_survive_a_thousand_rounds(tmp_path: Path, seed: int) -> None:
    seen = run("random", tmp_path, "--rounds", 1000, "--seed", seed)
    assert seen["killed"] >= 1000
    assert seen["temporary files of nobody"] > 0
