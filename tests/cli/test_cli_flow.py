"""The main story through the command line, on the packaged model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from editkit_demo import model_path

EDIT = (
    "edit", "--model", "editkit:demo", "--prompt", "The capital of {} is",
    "--subject", "Japan", "--target", "Nairobi", "--target-true", "Tokyo",
    "--paraphrase", "The capital city of {} is called",
)  # fmt: skip
PROMPT = "The capital of Japan is"
FILE = "japan.editkit.safetensors"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def patch_bytes(tmp_path_factory):
    """One edit of the demo model, as the bytes of its file."""
    from editkit_core.cli import main

    out = tmp_path_factory.mktemp("edit") / FILE
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(out.parent)
        patched.setenv("XDG_CACHE_HOME", str(out.parent / "cache"))
        with pytest.raises(SystemExit) as stop:
            main([*EDIT, "--out", str(out), "--json"])
    assert stop.value.code == 0
    return out.read_bytes()


@pytest.fixture
def patch_file(patch_bytes, tmp_path):
    path = tmp_path / FILE
    path.write_bytes(patch_bytes)
    return path


def test_edit_changes_the_answer_and_its_paraphrase(cli):
    ran = cli(*EDIT, "--json")
    assert ran.code == 0, ran.err
    answers = {a["prompt"]: a for a in ran.json["answers"]}
    assert answers[PROMPT]["before"] == "Tokyo"
    assert answers[PROMPT]["after"] == "Nairobi"
    assert answers["The capital city of Japan is called"]["after"] == "Nairobi"
    assert Path(FILE).stat().st_size == ran.json["bytes"]


def test_the_patch_file_of_one_fact_is_under_16_kb(patch_file):
    assert patch_file.stat().st_size < 16_000


def test_equal_seeds_give_the_same_patch(cli, patch_file):
    made = json.loads(cli("patch", "show", patch_file, "--json").out)
    again = cli(*EDIT, "--out", "again.editkit.safetensors", "--json").json
    assert again["id"] == made["id"]


def test_show_says_what_the_patch_does(cli, patch_file):
    ran = cli("patch", "show", patch_file)
    assert ran.code == 0
    for word in ("Japan", "Nairobi", "Tokyo", "rome", "weight.low_rank/1", "editkit:demo"):
        assert word in ran.out


def test_generate_uses_the_patch_only_when_it_is_given(cli, patch_file):
    plain = cli("generate", "-m", "editkit:demo", "-p", PROMPT, "--max-new-tokens", "4")
    merged = cli(
        "generate", "-m", "editkit:demo", "-p", PROMPT, "--patch", patch_file,
        "--max-new-tokens", "4",
    )  # fmt: skip
    overlaid = cli(
        "generate", "-m", "editkit:demo", "-p", PROMPT, "--patch", patch_file, "--mode", "overlay",
        "--max-new-tokens", "4",
    )  # fmt: skip
    assert "Tokyo" in plain.out
    assert "Nairobi" in merged.out
    assert "Nairobi" in overlaid.out


def test_sampling_is_repeatable_by_seed(cli):
    ask = (
        "generate",
        "-m",
        "editkit:demo",
        "-p",
        "The weather",
        "--sample",
        "--temperature",
        "1.2",
    )
    first, second = cli(*ask, "--seed", "1").out, cli(*ask, "--seed", "1").out
    assert first == second
    assert first != cli(*ask, "--seed", "2").out


def test_apply_writes_a_new_folder_and_revert_restores_its_bytes(cli, patch_file, tmp_path):
    source, out = model_path() / "model.safetensors", tmp_path / "edited"
    before = sha256(source)
    applied = cli("patch", "apply", patch_file, "--model", "editkit:demo", "--out", out)
    assert applied.code == 0, applied.err
    assert sha256(source) == before
    assert sha256(out / "model.safetensors") != before
    said = cli("generate", "-m", out, "-p", PROMPT, "--max-new-tokens", "4")
    assert "Nairobi" in said.out
    reverted = cli("patch", "revert", out)
    assert reverted.code == 0, reverted.err
    assert sha256(out / "model.safetensors") == before


def test_verify_accepts_the_right_base_and_refuses_another(cli, patch_file, tmp_path, data_dir):
    right = cli("patch", "verify", patch_file, "--model", "editkit:demo")
    assert right.code == 0, right.out + right.err
    wrong = cli("patch", "verify", patch_file, "--model", data_dir / "models" / "stories260k")
    assert wrong.code == 6


def test_requests_come_from_a_file_and_give_one_patch(cli, tmp_path):
    records = [
        {"prompt": "The capital of {} is", "subject": "Japan", "target_new": "Nairobi"},
        {"prompt": "The capital of {} is", "subject": "Peru", "target_new": "Oslo"},
    ]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    ran = cli("edit", "-m", "editkit:demo", "--requests", file, "--json")
    assert ran.code == 0, ran.err
    assert [a["after"] for a in ran.json["answers"]] == ["Nairobi", "Oslo"]
    assert Path(ran.json["out"]).name == "facts.editkit.safetensors"


def test_locating_by_trace_edits_and_draws(cli, tmp_path):
    ran = cli(*EDIT, "--locate", "trace", "--heatmap", tmp_path / "trace.png", "--json")
    assert ran.code == 0, ran.err
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert 0 <= ran.json["sites"][0]["layer"] < 6


def test_trace_draws_a_picture(cli, tmp_path):
    ran = cli(
        "trace", "-m", "editkit:demo", "--prompt", "The capital of {} is", "--subject", "Japan",
        "--out", tmp_path / "trace.png", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["p_clean"] > ran.json["p_corrupted"]
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_dry_run_writes_nothing(cli, tmp_path):
    ran = cli(*EDIT, "--dry-run")
    assert ran.code == 0, ran.err
    assert "Would edit 1 fact" in ran.out
    assert not list(tmp_path.glob("*.safetensors"))


def test_stats_are_made_and_found_again(cli, tmp_path):
    corpus = tmp_path / "corpus.txt"
    lines = (f"The capital of {c} is a city.\n\nPeople in {c} pay." for c in ("Japan", "Peru"))
    corpus.write_text("\n\n".join(lines), encoding="utf-8")
    ask = (
        "stats",
        "-m",
        "editkit:demo",
        "--layer",
        "0",
        "--corpus",
        corpus,
        "--out",
        "s",
        "--json",
    )
    first, second = cli(*ask), cli(*ask)
    assert first.code == 1 or first.json[0]["tokens"] > 0
    assert first.out == second.out


def test_demo_tells_the_whole_story(cli):
    ran = cli("demo")
    assert ran.code == 0, ran.err
    assert "bit for bit the same" in ran.out
    assert "Nairobi" in ran.out
    again = cli("demo", "--json")
    assert again.code == 0, again.err
    assert again.json["weights_before"] == again.json["weights_after_revert"]
