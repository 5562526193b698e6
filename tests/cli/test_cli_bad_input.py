"""What a person would type wrong: each gets its own error and exit code, and nothing is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = ("--model", "editkit:demo")
FACT = ("--prompt", "The capital of {} is", "--subject", "Japan", "--target", "Nairobi")


def edit(cli, *arguments, model="editkit:demo"):
    return cli("edit", "--model", model, *arguments)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--prompt", "The sky is", "--subject", "Japan", "--target", "x"), "EK-R01", "Japan"),
        (("--prompt", "{} is", "--subject", "Japan", "--target", " "), "EK-R02", "empty"),
        (("--prompt", "{} and {}", "--subject", "Japan", "--target", "x"), "EK-R05", "2 slots"),
        ((*FACT, "--method", "romee"), "EK-G01", "Did you mean 'rome'"),
        ((*FACT, "--set", "layr=1"), "EK-H01", "Did you mean 'layer'"),
        ((*FACT, "--set", "layer=99"), "EK-M03", "0 to 5"),
        ((*FACT, "--set", "layer=one"), "EK-H02", "layer"),
        ((*FACT, "--set", "variant=romex"), "EK-H02", "variant"),
        ((*FACT, "--preset", "gpt9"), "EK-H04", "gpt9"),
        ((*FACT, "--params", "none.yaml"), "EK-F03", "none.yaml"),
        (("--requests", "none.jsonl"), "EK-F03", "none.jsonl"),
        ((*FACT, "--dtype", "float99"), "EK-H02", "float99"),
    ],
)
def test_a_wrong_request_is_refused_by_name(cli, tmp_path, arguments, code, word):
    ran = edit(cli, *arguments)
    assert ran.code == 1
    assert code in ran.err
    assert word in ran.err
    assert ran.err.count("\n") == 1, "one line"
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_missing_model_names_what_was_looked_for(cli):
    ran = edit(cli, *FACT, model="no/such-folder-or-model")
    assert ran.code == 1
    assert "EK-M01" in ran.err
    assert "no/such-folder-or-model" in ran.err


def test_a_packaged_model_that_is_not_there_lists_those_that_are(cli):
    ran = edit(cli, *FACT, model="editkit:dmo")
    assert ran.code == 1
    assert "EK-M01" in ran.err
    assert "demo" in ran.err


def test_a_prompt_longer_than_the_context_is_refused(cli):
    long = "word " * 400
    ran = edit(cli, "--prompt", long + "{} is", "--subject", "Japan", "--target", "x")
    assert ran.code == 1
    assert "EK-R03" in ran.err
    assert "256" in ran.err


def test_a_target_the_model_already_says_is_told_and_not_failed(cli):
    ran = edit(cli, "--prompt", "The capital of {} is", "--subject", "Japan", "--target", "Tokyo")
    assert ran.code == 0, ran.err
    assert "before the edit too" in ran.out


def test_an_existing_output_is_kept(cli, tmp_path):
    out = tmp_path / "mine.editkit.safetensors"
    out.write_text("mine")
    ran = edit(cli, *FACT, "--out", out)
    assert ran.code == 1
    assert "EK-F01" in ran.err
    assert out.read_text() == "mine"


def test_no_space_left_leaves_nothing_behind(cli, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ran = edit(cli, *FACT)
    assert ran.code == 1
    assert "EK-F02" in ran.err
    assert "No space left" in ran.err
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == []


def test_an_output_folder_that_is_missing_is_named(cli, tmp_path):
    ran = edit(cli, *FACT, "--out", tmp_path / "no" / "x.editkit.safetensors")
    assert ran.code == 1
    assert "EK-F02" in ran.err or "EK-F03" in ran.err


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "truncated"),
        (b"<html>not found</html>", "HTML"),
        (b"\x80\x04pickle", "pickle"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", "not an editkit patch"),
    ],
)
def test_a_foreign_file_is_refused_as_a_patch(cli, tmp_path, content, word):
    path = tmp_path / "foreign.editkit.safetensors"
    path.write_bytes(content)
    ran = cli("patch", "show", path)
    assert ran.code == 7
    assert word in ran.err


def test_a_patch_for_another_base_is_refused_with_both_digests(cli, tmp_path, data_dir):
    out = tmp_path / "p.editkit.safetensors"
    from editkit_core import Editor, EditRequest

    editor = Editor.from_pretrained(data_dir / "models" / "stories260k")
    patch = editor.edit(
        EditRequest(prompt="there was a little {} named", subject="girl", target_new="Sam"),
        params={"v_steps": 3},
    )
    patch.save(out)
    ran = cli("generate", *DEMO, "--prompt", "x", "--patch", out)
    assert ran.code == 6
    assert "EK-P03" in ran.err


def test_a_json_error_is_json(cli):
    ran = edit(cli, *FACT, "--method", "romee", "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["error"]["code"] == "EK-G01"


def test_control_c_in_the_middle_leaves_no_file(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", "from editkit_core.cli import main; main()", "edit", *DEMO, *FACT,
         "--set", "v_steps=100000", "--set", "loss_stop=0"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    time.sleep(12)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Stopped" in err
    assert "Traceback" not in err
    assert list(Path(tmp_path).glob("*.safetensors")) == []
