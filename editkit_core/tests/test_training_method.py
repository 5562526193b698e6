"""A method that trains, from end to end: train, keep, edit, measure, on one process and on two."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_runs import write_requests
from click.testing import CliRunner
from fake_distributions import FakeSite
from training_toys import data, request, tiny

from editkit_core.api import Editor
from editkit_core.bench import Plan
from editkit_core.bench import run as run_bench
from editkit_core.cli import editkit
from editkit_core.errors import (
    BaseMismatchError,
    BrokenPluginError,
    EditorMissingError,
    InvalidParameterError,
    OutputExistsError,
    TrainingError,
    UnknownParameterError,
)
from editkit_core.patch.artifact import EditorArtifact
from editkit_core.testing import tiny_model
from editkit_core.training.processes import Processes

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, a data set and an editor that was trained on it."""
    folder = tmp_path_factory.mktemp("nudger")
    model = tiny()
    model.model.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    write_requests(folder / "facts.jsonl", [plain(i) for i in range(32)])
    return folder


@pytest.fixture(autouse=True)
def nudger(site: FakeSite) -> None:
    site.install("editkit-nudger", methods={"nudger": "nudger_method"}, version="1.0")


def plain(i: int) -> dict[str, Any]:
    one = request(i)
    return {
        "id": one.id,
        "prompt": one.prompt,
        "subject": one.subject,
        "target_new": one.target_new,
        "target_true": one.target_true,
        "relation": one.relation,
        "paraphrases": list(one.paraphrases),
    }


def editor_of(folder: Path) -> Editor:
    return Editor.from_pretrained(folder / "model")


def trained(folder: Path) -> Path:
    """Return the folder of a training run; the first call trains."""
    out = folder / "run"
    if not (out / "editor.safetensors").exists():
        editor_of(folder).train("nudger", f"requests:{folder / 'facts.jsonl'}", out=out)
    return out


def cli(*arguments: object) -> Any:
    result = CliRunner().invoke(editkit, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def train_command(folder: Path, out: Path, *more: object) -> tuple[object, ...]:
    facts = f"requests:{folder / 'facts.jsonl'}"
    return ("train", "nudger", "-m", folder / "model", "-d", facts, "--out", out, *more)


def test_what_was_trained_edits(kept: Path) -> None:
    editor = editor_of(kept)
    before = editor.model.state_digest()
    patch = editor.edit(request(3), method="nudger", editor=trained(kept))
    assert editor.model.state_digest() == before
    report = editor.evaluate(request(3), patch)
    score = report.score("reliability")
    assert (score.before, score.after) == (0.0, 1.0)
    assert patch.header.environment["editor"] == EditorArtifact.load(trained(kept)).id


def test_an_edit_takes_the_parameters_the_editor_was_trained_with(kept: Path) -> None:
    artifact = EditorArtifact.load(trained(kept))
    editor = editor_of(kept)
    resolved = editor.resolve_params("nudger", {"alpha": 2.0}, editor=artifact)
    assert (resolved.params.steps, resolved.params.alpha) == (60, 2.0)
    assert resolved.source == f"the trained editor {artifact.id}"
    with pytest.raises(InvalidParameterError, match="a preset has no part"):
        editor.resolve_params("nudger", preset="tiny", editor=artifact)


def test_an_edit_without_its_editor_says_how_to_get_one(kept: Path) -> None:
    with pytest.raises(EditorMissingError, match="editkit train nudger --model"):
        editor_of(kept).edit(request(0), method="nudger")


def test_an_editor_for_another_base_is_refused(kept: Path) -> None:
    other = Editor(tiny_model("gpt2", seed=9))
    with pytest.raises(BaseMismatchError, match="was trained for 'model' and does not fit"):
        other.edit(request(0), method="nudger", editor=trained(kept))


def test_an_editor_of_another_method_is_refused(kept: Path, site: FakeSite) -> None:
    source = (TESTS / "nudger_method.py").read_text(encoding="utf-8")
    source = source.replace('name="nudger"', 'name="shover"')
    site.install("editkit-shover", methods={"shover": "shover"}, modules={"shover": source})
    with pytest.raises(EditorMissingError, match="is for the method 'nudger', the edit asks for"):
        editor_of(kept).edit(request(0), method="shover", editor=trained(kept))


def test_a_method_that_does_not_train_takes_no_editor_and_trains_none(
    kept: Path, site: FakeSite
) -> None:
    from bench_runs import install_nudge

    install_nudge(site)
    editor = editor_of(kept)
    with pytest.raises(EditorMissingError, match="nudge uses no trained editor"):
        editor.edit(request(0), method="nudge", editor=trained(kept))
    with pytest.raises(TrainingError, match="needs no training"):
        editor.train("nudge", data())


def test_a_method_that_says_it_trains_and_does_not_is_named(kept: Path, site: FakeSite) -> None:
    source = (TESTS / "nudger_method.py").read_text(encoding="utf-8")
    source = source.replace('name="nudger"', 'name="liar"').replace(
        "@hookimpl\ndef editkit_train", "def editkit_train"
    )
    site.install("editkit-liar", methods={"liar": "liar"}, modules={"liar": source})
    with pytest.raises(BrokenPluginError, match="Nothing answered editkit_train: editkit-liar"):
        editor_of(kept).train("liar", data())


def test_an_observer_may_wrap_training(kept: Path, site: FakeSite) -> None:
    watcher = """
        from editkit_core import hookimpl
        SEEN = []

        @hookimpl(wrapper=True)
        def editkit_train(dataset):
            SEEN.append(len(dataset.requests))
            return (yield)
    """
    site.install("watch", plugins={"watch": "watcher_of"}, modules={"watcher_of": watcher})
    editor_of(kept).train("nudger", data(), params={"steps": 1})
    assert sys.modules["watcher_of"].SEEN == [32]


def test_training_on_the_command_line_is_training_in_python(kept: Path, tmp_path: Path) -> None:
    made = json.loads(cli(*train_command(kept, tmp_path / "run"), "--json").stdout)
    there = EditorArtifact.load(trained(kept))
    here = EditorArtifact.load(tmp_path / "run")
    assert here.content_digest == there.content_digest
    assert (made["id"], made["training"]["stopped"]) == (here.id, "steps")
    assert made["bytes"] == (tmp_path / "run" / "editor.safetensors").stat().st_size


def test_the_command_line_edits_with_what_it_trained(kept: Path, tmp_path: Path) -> None:
    words = ("--prompt", "The {} knows the", "--subject", "Delft", "--target", "year")
    out = tmp_path / "delft.editkit.safetensors"
    place = ("edit", "-m", kept / "model", "--method", "nudger", "--editor", trained(kept))
    made = json.loads(cli(*place, *words, "--out", out, "--json").stdout)
    assert made["answers"][0]["after"].startswith("year")
    assert "the trained editor ed-" in made["source"]
    assert out.stat().st_size == made["bytes"]


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    told = cli(*train_command(kept, out, "--set", "lr=0.5"), "--dry-run").stdout
    assert "Would train nudger" in told
    assert "32 requests about 16 subjects, preset tiny (made for the tests)" in told
    assert "0.5" in told
    assert not out.exists()


def test_a_parameter_that_the_method_does_not_have_is_refused(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownParameterError, match="Did you mean 'steps'"):
        cli(*train_command(kept, tmp_path / "run", "--set", "step=3"))
    assert not (tmp_path / "run").exists()


def test_showing_an_editor_says_what_it_is(kept: Path) -> None:
    file = trained(kept) / "editor.safetensors"
    told = cli("patch", "show", file).stdout
    for part in ("a trained editor, not a patch", "nudger (editkit-nudger 1.0)", "60 updates"):
        assert part in told
    found = json.loads(cli("patch", "show", file, "--json").stdout)
    assert (found["kind"], found["subjects"]) == ("editor", found["training"]["requests"] / 2)
    assert found["tensors"]["map"] == {"shape": [32, 32], "dtype": "float32"}


def test_a_run_that_measures_an_editor_records_it(
    kept: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan(
        model=str(kept / "model"),
        dataset=f"requests:{kept / 'facts.jsonl'}",
        method="nudger",
        editor=str(trained(kept)),
        limit=6,
    )
    artifact = EditorArtifact.load(trained(kept))
    with caplog.at_level(logging.WARNING, "editkit"):
        result = run_bench(plan, tmp_path / "bench")
    meta = json.loads((tmp_path / "bench" / "run.json").read_text(encoding="utf-8"))
    assert meta["editor"]["digest"] == artifact.content_digest
    assert result.summary["failed"] == 0
    seen = meta["editor"]["trained_on"]
    assert seen
    assert f"was trained on {len(seen)} of the subjects it is measured on: {seen[0]}" in caplog.text


def test_a_run_goes_on_only_with_the_editor_it_was_begun_with(kept: Path, tmp_path: Path) -> None:
    place = tmp_path / "editor.safetensors"
    EditorArtifact.load(trained(kept)).save(place)
    plan = Plan(
        model=str(kept / "model"),
        dataset=f"requests:{kept / 'facts.jsonl'}",
        method="nudger",
        editor=str(place),
        limit=2,
    )
    run_bench(plan, tmp_path / "bench")
    editor_of(kept).train("nudger", data(), seed=5, params={"steps": 2}).save(place, overwrite=True)
    with pytest.raises(OutputExistsError, match="begun with another editor"):
        run_bench(plan, tmp_path / "bench")


def test_a_run_without_the_editor_stops_before_the_first_edit(kept: Path, tmp_path: Path) -> None:
    plan = Plan(
        model=str(kept / "model"),
        dataset=f"requests:{kept / 'facts.jsonl'}",
        method="nudger",
    )
    with pytest.raises(EditorMissingError):
        run_bench(plan, tmp_path / "bench")


def test_more_processes_than_batches_an_update_are_refused(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "size", property(lambda _: 3))
    with pytest.raises(InvalidParameterError, match="3 processes share 2 batches an update"):
        editor_of(kept).train("nudger", data(), validation_share=0.0)


def launched(folder: Path, out: Path, site: FakeSite, *more: object) -> None:
    """Train by `accelerate launch` on two CPU processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = (
        "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines",
        "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port,
        "-m", "editkit_core",
    )  # fmt: skip
    command = [sys.executable, *map(str, (*launch, *train_command(folder, out, *more)))]
    path = os.pathsep.join([str(site.folder), str(TESTS)])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Training ended") == 1


def test_two_processes_train_what_one_does(kept: Path, tmp_path: Path, site: FakeSite) -> None:
    launched(kept, tmp_path / "two", site)
    one, two = EditorArtifact.load(trained(kept)), EditorArtifact.load(tmp_path / "two")
    assert abs(one.tensors["map"]).max() > 0.1
    assert abs(one.tensors["map"] - two.tensors["map"]).max() < 1e-4
    for name, value in one.training.metrics.items():
        assert two.training.metrics[name] == pytest.approx(value, abs=0.01)
