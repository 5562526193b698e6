"""Runs that stop: killed, interrupted or damaged; they go on as if they never had."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest
import torch
from training_toys import SCHEDULE, Nudger, run, tiny

from editkit_core.errors import CheckpointError, WriteFailedError
from editkit_core.models.editable import EditableModel
from editkit_core.patch.artifact import EditorArtifact
from editkit_core.training import TrainBatch, checkpoint
from editkit_core.training.checkpoint import Checkpoint, Counters

PATIENCE_S = 120
CHECKPOINT = "checkpoint.safetensors"
SLOW_RUN = """
import sys, time
from pathlib import Path
from training_toys import SCHEDULE, Nudger, run, tiny

class Slow(Nudger):
    def loss(self, batch):
        time.sleep(0.03)
        return super().loss(batch)

model = tiny()
run(model, Slow(model), folder=Path(sys.argv[1]), checkpoint_every=2)
"""


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny()


def columns(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def check_same_end(folder: Path, other: Path) -> None:
    """Check that two runs ended with the same editor and with the same last weights and state."""
    one, two = checkpoint.read(folder / CHECKPOINT), checkpoint.read(other / CHECKPOINT)
    assert EditorArtifact.load(folder).content_digest == EditorArtifact.load(other).content_digest
    assert one.counters.step == two.counters.step
    assert one.weights["map.weight"].abs().max() > 0.05  # it was trained
    pairs = [(one.weights, two.weights), (one.best, two.best)]
    pairs += [(one.optimizer[number], two.optimizer[number]) for number in two.optimizer]
    for mine, theirs in pairs:
        assert set(mine) == set(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def kill_after(folder: Path, updates: int) -> None:
    """Train in a process of its own and kill it once so many updates are logged."""
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SLOW_RUN, str(folder)],
        env={"PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    log, end = folder / "training.csv", time.monotonic() + PATIENCE_S
    while not (log.exists() and log.read_bytes().count(b"\n") > updates):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(
    model: EditableModel, tmp_path: Path
) -> None:
    run(model, Nudger(model), folder=tmp_path / "whole", checkpoint_every=2)
    folder = tmp_path / "killed"
    kill_after(folder, 5)
    result = run(model, Nudger(model), folder=folder, checkpoint_every=2)
    assert 0 < result.resumed_at < SCHEDULE.steps
    check_same_end(folder, tmp_path / "whole")
    for name in ("training.csv", "validation.csv"):
        assert columns(folder / name) == columns(tmp_path / "whole" / name)


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 2, 7, 11])
def test_a_run_that_was_killed_twice_ends_with_the_same_weights(
    model: EditableModel, tmp_path: Path, updates: int
) -> None:
    run(model, Nudger(model), folder=tmp_path / "whole", checkpoint_every=2)
    folder = tmp_path / "killed"
    kill_after(folder, max(1, updates // 2))
    kill_after(folder, updates)
    run(model, Nudger(model), folder=folder, checkpoint_every=2)
    check_same_end(folder, tmp_path / "whole")


class Interrupted(Nudger):
    """Is stopped by Ctrl-C in a batch."""

    stop_at: int | None = None

    def loss(self, batch: TrainBatch):  # type: ignore[no-untyped-def]  # as the class above
        if batch.number == self.stop_at:
            raise KeyboardInterrupt
        return super().loss(batch)


def test_ctrl_c_keeps_every_finished_update(model: EditableModel, tmp_path: Path) -> None:
    run(model, Nudger(model), folder=tmp_path / "whole")
    folder = tmp_path / "stopped"
    learner = Interrupted(model)
    learner.stop_at = 2 * 7 + 1  # in the second batch of update 8
    with pytest.raises(KeyboardInterrupt):
        run(model, learner, folder=folder, checkpoint_every=100)
    assert checkpoint.read(folder / CHECKPOINT).counters.step == 7
    twin = Nudger(model)
    result = run(model, twin, folder=folder, checkpoint_every=100)
    assert result.resumed_at == 7
    assert min(twin.seen) == 2 * 7
    check_same_end(folder, tmp_path / "whole")


def test_a_finished_run_only_says_again_what_it_made(model: EditableModel, tmp_path: Path) -> None:
    first = run(model, Nudger(model), folder=tmp_path)
    learner = Nudger(model)
    again = run(model, learner, folder=tmp_path)
    assert learner.seen == []
    assert again.resumed_at == SCHEDULE.steps
    assert again.artifact.content_digest == first.artifact.content_digest


def test_time_counts_over_all_starts(model: EditableModel, tmp_path: Path) -> None:
    half = attrs.evolve(SCHEDULE, steps=12)
    learner = Interrupted(model)
    learner.stop_at = 10
    with pytest.raises(KeyboardInterrupt):
        run(model, learner, folder=tmp_path, schedule=half)
    before = checkpoint.read(tmp_path / CHECKPOINT).counters.seconds
    result = run(model, Nudger(model), folder=tmp_path, schedule=half)
    assert 0 < before < result.seconds


def made() -> Checkpoint:
    tied = torch.arange(6.0).reshape(2, 3)
    return Checkpoint(
        run={"method": "toy", "params": {"lr": 1e-3, "names": ["a", "ü"]}},
        counters=Counters(step=7, seconds=1.5, validated=6, stale=2, best_step=4, best={"s": 0.1}),
        weights={"a": tied, "b": tied, "n": torch.tensor(3), "h": torch.ones(2).bfloat16()},
        best={"a": tied + 1},
        optimizer={0: {"step": torch.tensor(7.0), "exp_avg": tied.T, "plain": 0.5}, 2: {}},
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    checkpoint.write(path, made())
    there, back = made(), checkpoint.read(path)
    assert (back.run, back.counters) == (there.run, there.counters)
    assert set(back.weights) == set(there.weights)
    for name, tensor in there.weights.items():
        assert back.weights[name].dtype == tensor.dtype
        assert torch.equal(back.weights[name], tensor)
    assert torch.equal(back.best["a"], there.best["a"])
    assert back.optimizer[0]["plain"] == 0.5
    assert torch.equal(back.optimizer[0]["exp_avg"], there.optimizer[0]["exp_avg"])


def test_a_checkpoint_with_one_bit_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    checkpoint.write(path, made())
    data = bytearray(path.read_bytes())
    for place in (len(data) - 1, len(data) // 2, data.index(b'\\"step\\": 7') + 10):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="cannot be used as a training checkpoint"):
            checkpoint.read(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"PK\x03\x04" + bytes(40), bytes(64)])
def test_what_is_no_checkpoint_is_refused(
    model: EditableModel, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(CheckpointError, match="--fresh"):
        run(model, Nudger(model), folder=tmp_path)


def test_a_disk_that_is_full_keeps_the_checkpoint_before(
    model: EditableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from editkit_core import atomic

    whole = atomic._write_temporary
    written = []

    def full(temporary: Path, pieces: list[bytes]) -> None:
        if CHECKPOINT in temporary.name:
            written.append(temporary)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        whole(temporary, pieces)

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "_write_temporary", full)
        with pytest.raises(WriteFailedError, match="No space left"):
            run(model, Nudger(model), folder=tmp_path / "full", checkpoint_every=4)
    assert checkpoint.read(tmp_path / "full" / CHECKPOINT).counters.step == 4
    run(model, Nudger(model), folder=tmp_path / "full", checkpoint_every=4)
    run(model, Nudger(model), folder=tmp_path / "whole")
    check_same_end(tmp_path / "full", tmp_path / "whole")
