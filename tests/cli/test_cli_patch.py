"""``editkit patch diff``, ``lint``, ``fold``, ``split``, and the exit codes of ``verify``."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

from editkit_core import Patch
from editkit_core.patch.kinds import LowRankEntry
from editkit_core.testing.patches import random_patch

NO_TORCH = """
import sys
from editkit_core.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    if stop.code:
        raise
print("torch" in sys.modules, file=sys.stderr)
"""


def damaged(path, tmp_path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    return tmp_path / "damaged"


# -- diff -------------------------------------------------------------------------------------


def test_diff_says_what_differs(cli, file):
    ran = cli("patch", "diff", file("oslo"), file("fuji"))
    assert ran.code == 0, ran.err
    for word in ("The capital of Norway is", "removed", "Mount Fuji stands in", "added", "seed"):
        assert word in ran.out
    assert "transformer.h.1.mlp.c_proj.weight" in ran.out.replace("\n", "")


def test_diff_of_a_file_with_itself_is_the_same_patch(cli, file):
    ran = cli("patch", "diff", file("oslo"), file("oslo"))
    assert ran.code == 0
    assert "hold the same patch" in ran.out


def test_diff_tells_programs_numbers_that_numpy_gives(cli, file):
    found = cli("patch", "diff", file("oslo"), file("fuji"), "--json").json
    (tensor,) = found["tensors"]
    one, two = (Patch.load(file(name)).entries[0].delta().numpy() for name in ("oslo", "fuji"))
    assert tensor["difference"] == pytest.approx(np.linalg.norm(one - two))
    cosine = (one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two)
    assert tensor["cosine"] == pytest.approx(cosine)
    assert (found["same_content"], found["same_change"]) == (False, False)


def test_diff_warns_of_a_contradiction(cli, file, make):
    from editkit_core import EditRequest

    other = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Bern")
    ran = cli("patch", "diff", file("oslo"), make("other", "fuji", edits=(other,)))
    assert "contradiction" in ran.out
    assert "'Bern'" in ran.out


# -- lint -------------------------------------------------------------------------------------


def test_lint_warns_and_exits_with_0(cli, file):
    ran = cli("patch", "lint", file("oslo"))
    assert ran.code == 0, ran.err
    assert "no_name" in ran.out
    assert "0 errors" in ran.out


def test_strict_lint_fails_on_warnings(cli, file):
    assert cli("patch", "lint", file("oslo"), "--strict").code == 4


def test_lint_fails_on_errors(cli, make):
    ran = cli("patch", "lint", make("odd", requires=("ek-1",), conflicts=("ek-1",)), "--json")
    assert ran.code == 4
    assert ran.json["errors"] == 1
    assert ran.json["findings"][0]["rule"] == "self_reference"


# -- fold and split ---------------------------------------------------------------------------


def test_fold_and_split_give_the_same_files_back(cli, file, tmp_path):
    whole = tmp_path / "all.editkit.safetensors"
    files = [file(name) for name in ("oslo", "warsaw", "fuji")]
    ran = cli("patch", "fold", *files, "--out", whole, "--name", "all")
    assert ran.code == 0, ran.err
    assert "3 patches" in ran.out
    ran = cli("patch", "split", whole, "--out", tmp_path / "parts")
    assert ran.code == 0, ran.err
    written = {path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    assert written == {path.read_bytes() for path in files}


def test_fold_scales_the_files_that_are_named(cli, file, tmp_path):
    whole = tmp_path / "half"
    ran = cli("patch", "fold", file("oslo"), "--scale", f"{file('oslo')}=0.5", "--out", whole)
    assert ran.code == 0, ran.err
    half, full = Patch.load(whole).entries[0], Patch.load(file("oslo")).entries[0]
    assert isinstance(half, LowRankEntry)
    assert isinstance(full, LowRankEntry)
    assert np.array_equal(half.u, full.u / 2)


@pytest.mark.parametrize(("text", "code"), [("0.5", "EK-H02"), ("none=2", "EK-F03")])
def test_a_scale_that_names_no_file_is_refused(cli, file, tmp_path, text, code):
    ran = cli("patch", "fold", file("oslo"), "--scale", text, "--out", tmp_path / "x")
    assert ran.code == 1
    assert code in ran.err


def test_compress_tells_the_ranks(cli, tiny, tmp_path):
    for name in ("a", "b"):
        random_patch(tiny, seed=1, rank=2, name=name, scale=0.1 if name == "a" else 0.2).save(
            tmp_path / name
        )
    command = ("patch", "fold", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    found = cli(*command, "--compress", "--json").json
    assert found["ranks"] == {"transformer.h.1.mlp.c_proj.weight": [4, 2]}
    assert cli("patch", "split", tmp_path / "c", "--out", tmp_path / "d").code == 4


def test_dry_runs_write_nothing(cli, file, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    files = (file("oslo"), file("fuji"))
    assert "Would write" in cli("patch", "fold", *files, "--out", whole, "--dry-run").out
    assert not whole.exists()
    assert cli("patch", "fold", *files, "--out", whole).code == 0
    assert "Would write" in cli("patch", "split", whole, "--out", parts, "--dry-run").out
    assert not parts.exists()


def test_nothing_is_replaced_without_force(cli, file, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = ("patch", "fold", file("oslo"), file("fuji"), "--out", whole)
    assert (cli(*command).code, cli(*command).code, cli(*command, "--force").code) == (0, 1, 0)
    command = ("patch", "split", whole, "--out", parts)
    assert (cli(*command).code, cli(*command).code, cli(*command, "--force").code) == (0, 1, 0)
    assert cli("patch", "split", whole, "--out", whole).code == 1


def test_patches_of_two_bases_are_not_folded(cli, file, tmp_path):
    from editkit_core.testing import tiny_model

    random_patch(tiny_model("gpt2", seed=9)).save(tmp_path / "foreign")
    ran = cli("patch", "fold", file("oslo"), tmp_path / "foreign", "--out", tmp_path / "x")
    assert ran.code == 6
    assert not (tmp_path / "x").exists()


# -- every command ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["show", "lint", "verify"])
def test_a_damaged_file_exits_with_7(cli, file, tmp_path, command):
    ran = cli("patch", command, damaged(file("oslo"), tmp_path))
    assert ran.code == 7
    assert "EK-P02" in ran.err + ran.out


def test_verify_exits_with_6_on_another_base(cli, file, tiny_folder, tmp_path):
    from editkit_core.testing import tiny_model

    other = tiny_model("gpt2", seed=9)
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    assert cli("patch", "verify", file("oslo"), "--model", tiny_folder).code == 0
    assert cli("patch", "verify", file("oslo"), "--model", tmp_path / "other").code == 6


@pytest.mark.parametrize(
    "command",
    [
        ("show", "oslo"),
        ("lint", "oslo"),
        ("verify", "oslo"),
        ("diff", "oslo", "fuji"),
        ("fold", "oslo", "fuji", "--compress", "--out", "x"),
        ("split", "whole", "--out", "y"),
    ],
    ids=lambda words: words[0],
)
def test_looking_at_files_needs_no_torch(cli, command, patch_files, tmp_path):
    for path in patch_files.iterdir():
        shutil.copy(path, tmp_path / path.name.partition(".")[0])
    cli("patch", "fold", tmp_path / "oslo", tmp_path / "fuji", "--out", tmp_path / "whole")
    ran = subprocess.run(
        [sys.executable, "-c", NO_TORCH, "patch", *command],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines()[-1] == "False"
