"""The stack with a model that knows facts: edit on top, generate, disable, compute again."""

from __future__ import annotations

import re
import shlex
import shutil
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "stack.md"
JAPAN = ("--prompt", "The capital of {} is", "--subject", "Japan")
PERU = ("--prompt", "The capital of {} is", "--subject", "Peru")
PROMPTS = {"Japan": "The capital of Japan is", "Peru": "The capital of Peru is"}


def said(cli, stack: Path, *more: str) -> dict[str, str]:
    """What the model says with a stack: country -> the answer's beginning."""
    ask = [word for prompt in PROMPTS.values() for word in ("--prompt", prompt)]
    ran = cli("generate", "--stack", stack, *ask, "--max-new-tokens", "4", "--json", *more)
    assert ran.code == 0, ran.err
    texts = [row["text"].strip() for row in ran.json]
    return {name: text.split(".")[0] for name, text in zip(PROMPTS, texts, strict=True)}


LINES = re.findall(r"^\$ (editkit .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
FIRST = next(i for i, line in enumerate(LINES) if line.startswith("editkit generate"))


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A stack of the demo model with two edits, made by the first commands of the how-to page."""
    from editkit_core.cli import main
    from editkit_core.numerics import covariance

    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patched.setattr(covariance, "ENOUGH_TOKENS_A_KEY_ENTRY", 1)  # a small sample will do here
        for line in LINES[:FIRST]:
            with pytest.raises(SystemExit) as stop, redirect_stderr(StringIO()) as said:
                main(shlex.split(line)[1:])
            assert stop.value.code == 0, said.getvalue()
    return folder


@pytest.fixture
def stack(edited, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(edited / "cache"))
    return Path(shutil.copytree(edited / ".editkit", tmp_path / ".editkit"))


def test_edits_on_a_stack_are_in_it_and_the_model_says_them(cli, stack, tmp_path):
    rows = cli("stack", "series", "--json").json
    assert [row["name"] for row in rows] == ["japan", "peru"]
    assert rows[1]["depends_on"] == [rows[0]["id"]]
    assert not list(tmp_path.glob("*.safetensors")), "the stack keeps the files"
    answers = said(cli, stack)
    assert answers["Japan"].startswith("Nairob")
    assert answers["Peru"].startswith("Oslo")


def test_the_edits_are_said_in_bfloat16_and_as_side_paths(cli, stack):
    for more in (("--dtype", "bfloat16"), ("--mode", "overlay"), ("--mode", "merge")):
        assert said(cli, stack, *more)["Japan"].startswith("Nairob")


def test_popping_gives_the_old_answer_back(cli, stack):
    assert cli("stack", "pop").code == 0
    answers = said(cli, stack)
    assert answers["Japan"].startswith("Nairob")
    assert answers["Peru"].startswith("Lima")


def test_taking_out_what_another_stands_on_is_refused_forced_or_computed_again(cli, stack):
    refused = cli("stack", "disable", "japan")
    assert refused.code == 5
    assert "EK-K03" in refused.err
    assert "--rebase" in refused.err
    old = cli("stack", "top", "--json").json["id"]
    planned = cli("stack", "disable", "japan", "--rebase", "--dry-run")
    assert planned.code == 0
    assert f"Would compute {old} (peru) again" in planned.out
    ran = cli("stack", "remove", "japan", "--rebase", "--json")
    assert ran.code == 0, ran.err
    (row,) = ran.json["entries"]
    assert ran.json["replaced"] == {old: row["id"]}
    assert (row["name"], row["computed_on"], row["stale"]) == ("peru", None, False)
    answers = said(cli, stack)
    assert answers["Japan"].startswith("Tokyo")
    assert answers["Peru"].startswith("Oslo")
    assert cli("stack", "doctor").code == 0


def test_a_stale_patch_is_seen_and_computed_again_later(cli, stack):
    assert cli("stack", "disable", "japan", "--force").code == 0
    assert cli("stack", "check").code == 5
    assert "peru" in cli("stack", "status").out
    dry = cli("stack", "rebase", "--dry-run")
    assert dry.code == 0
    assert "Would compute" in dry.out
    assert cli("stack", "rebase").code == 0
    assert cli("stack", "check").code == 0
    again = cli("stack", "rebase")
    assert again.code == 0
    assert "Nothing to rebase" in again.out


def test_an_edit_that_contradicts_the_stack_is_refused_before_it_is_computed(cli, stack):
    ran = cli("edit", "--stack", stack, *JAPAN, "--target", "Lima")
    assert ran.code == 5
    assert "EK-K02" in ran.err
    assert "the new edit" in ran.err


def test_an_edit_that_is_refused_once_it_is_computed_is_kept_in_a_file(cli, stack, tmp_path):
    """Without key statistics a rank-one change reaches every token: much crosstalk."""
    before = (stack / "stack.json").read_bytes()
    words = ("--prompt", "The capital of {} is", "--subject", "Kenya", "--target", "Oslo")
    large = ("--set", "covariance=identity", "--set", "clamp_norm=50", "--set", "v_lr=2")
    ran = cli("edit", "--stack", stack, *words, *large)
    assert ran.code == 5, ran.out
    assert "EK-K02" in ran.err
    (kept,) = tmp_path.glob("*.editkit.safetensors")
    assert f"kept in {kept.name}" in ran.err
    assert (stack / "stack.json").read_bytes() == before
    assert cli("stack", "push", kept.name, "--force").code == 0


def test_a_dry_run_of_an_edit_on_a_stack_writes_nothing(cli, stack, tmp_path):
    before = (stack / "stack.json").read_bytes()
    words = ("--prompt", "The capital of {} is", "--subject", "Kenya", "--target", "Oslo")
    ran = cli("edit", "--stack", stack, *words, "--dry-run")
    assert ran.code == 0, ran.err
    assert "push it on" in ran.out
    assert (stack / "stack.json").read_bytes() == before
    assert not list(tmp_path.glob("*.safetensors"))


def test_without_a_model_and_a_stack_edit_and_generate_ask_for_one(cli):
    for arguments in (("edit", *JAPAN, "--target", "Lima"), ("generate", "--prompt", "x")):
        ran = cli(*arguments)
        assert ran.code == 2
        assert "--model" in ran.err
        assert "--stack" in ran.err


def test_the_other_commands_of_the_how_to_page_run_as_they_stand(cli, edited, stack, tmp_path):
    for file in edited.glob("*.safetensors"):
        shutil.copy(file, tmp_path)
    outputs = {}
    for line in LINES[FIRST:]:
        ran = cli(*shlex.split(line)[1:])
        assert ran.code == 0, f"{line}\n{ran.out}{ran.err}"
        outputs[line] = ran.out
    assert len(outputs) > 20
    assert "Nairobi" in outputs[LINES[FIRST]]
    assert "Oslo" in outputs[LINES[FIRST]]
    assert "sound" in outputs["editkit stack doctor"]
