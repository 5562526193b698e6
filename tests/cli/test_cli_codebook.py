"""Codebook patches on the command line: shown, thinned out, stacked, refused as weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from editkit_core import EditRequest, Patch
from editkit_core.models.editable import EditableModel
from editkit_core.testing.patches import random_codebook

FACTS = tuple(
    EditRequest(prompt="The capital of {} is", subject=subject, target_new=target)
    for subject, target in (("Norway", "Lima"), ("Peru", "Oslo"), ("Chad", "Rome"))
)
Book = Callable[..., Path]


@pytest.fixture
def book(tiny: EditableModel, tmp_path: Path) -> Book:
    """Write a codebook of the first facts; with ``former``, one that holds that file's too."""

    def write(called: str, count: int = 2, former: Path | None = None) -> Path:
        path = tmp_path / f"{called}.editkit.safetensors"
        held = None if former is None else Patch.load(former)
        edits = FACTS[:count] if held is None else FACTS[len(held.header.edits) : count]
        random_codebook(tiny, edits, former=held, seed=count).save(path)
        return path

    return write


def series(cli) -> list[dict[str, object]]:
    return cli("stack", "series", "--json").json


def test_show_says_what_a_codebook_holds_and_where(cli, book):
    path = book("book")
    shown = cli("patch", "show", path, "--json").json["entries"][0]
    assert (shown["level"], shown["rows"], shown["edits"]) == ("module", 2, 2)
    assert (shown["labels"], shown["replacement"]) == (2, "replace_last")
    assert shown["radii"] == [0.5, 0.5]
    ran = cli("patch", "show", path)
    assert ran.code == 0, ran.err
    for word in ("gate.codebook/1", "rows 2", "replace_last", "#2"):
        assert word in ran.out


def test_diff_of_two_snapshots_counts_their_rows(cli, book):
    first = book("first")
    second = book("second", 3, former=first)
    ran = cli("patch", "diff", first, second)
    assert ran.code == 0, ran.err
    assert "2 in both" in " ".join(ran.out.split())
    found = cli("patch", "diff", first, second, "--json").json
    assert found["modules"][0]["rows"] == [2, 0, 1]
    assert found["conflicts"] == []


@pytest.mark.parametrize("word", ["Peru", "2"])
def test_an_edit_is_dropped_from_a_codebook(cli, book, tmp_path, word):
    path, out = book("book"), tmp_path / "rest.editkit.safetensors"
    ran = cli("patch", "drop", path, word, "--out", out)
    assert ran.code == 0, ran.err
    assert "Dropped The capital of Peru is -> Oslo" in ran.out
    rest = Patch.load(out)
    assert [edit.subject for edit in rest.header.edits] == ["Norway"]
    assert rest.header.replaces == (Patch.load(path).id,)


def test_a_dry_run_drops_nothing_and_a_wrong_name_is_helped(cli, book, tmp_path):
    path, out = book("book"), tmp_path / "rest.editkit.safetensors"
    assert (
        cli("patch", "drop", path, "Peru", "--out", out, "--dry-run", "--json").json["edits"] == 1
    )
    ran = cli("patch", "drop", path, "Perru", "--out", out)
    assert ran.code == 1
    assert "Did you mean 'Peru'" in ran.err
    assert not out.exists()


def test_no_edit_is_dropped_from_a_patch_of_weights(cli, file, tmp_path):
    ran = cli("patch", "drop", file("oslo"), "1", "--out", tmp_path / "rest")
    assert ran.code == 4
    assert "weight.low_rank/1" in ran.err


def test_a_codebook_splits_by_edit(cli, book, tmp_path):
    ran = cli("patch", "split", book("book"), "--out", tmp_path / "parts", "--json")
    assert ran.code == 0, ran.err
    parts = [Patch.load(row["file"]) for row in ran.json["files"]]
    assert [part.header.edits for part in parts] == [(FACTS[0],), (FACTS[1],)]


def test_a_pushed_snapshot_shadows_the_older_and_a_pop_shows_it_again(cli, empty, book):
    older = book("older")
    assert cli("stack", "push", older).code == 0
    newer = cli("stack", "push", book("newer", 3, former=older))
    assert newer.code == 0, newer.err
    assert [(row["mode"], row["shadowed"]) for row in series(cli)] == [
        ("overlay", True),
        ("overlay", False),
    ]
    assert cli("stack", "check").code == 0
    assert cli("stack", "doctor").code == 0
    assert cli("stack", "pop").code == 0
    assert [row["shadowed"] for row in series(cli)] == [False, False]


@pytest.mark.parametrize("option", [("--mode", "merge"), ("--scale", "0.5")])
def test_a_codebook_is_pushed_neither_merged_nor_scaled(cli, empty, book, option):
    ran = cli("stack", "push", book("book"), *option)
    assert ran.code == 4
    assert "EK-P07" in ran.err
    assert series(cli) == []


@pytest.mark.parametrize("change", [("mode", "1", "merge"), ("scale", "1", "2")])
def test_a_codebook_in_a_stack_is_neither_merged_nor_scaled(cli, empty, book, change):
    assert cli("stack", "push", book("book")).code == 0
    before = series(cli)
    assert cli("stack", *change).code == 4
    assert series(cli) == before


def test_check_names_both_patches_where_codebooks_contradict(cli, empty, book, tiny, tmp_path):
    assert cli("stack", "push", book("book")).code == 0
    rival = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Cairo")
    random_codebook(tiny, [rival], seed=9).save(tmp_path / "rival")
    ran = cli("stack", "check", tmp_path / "rival", "--json")
    assert ran.code == 5
    assert [found["kind"] for found in ran.json["conflicts"]] == ["contradiction", "overlap"]


def test_codebooks_in_a_stack_are_folded_and_split_in_place(cli, empty, book, tiny, tmp_path):
    assert cli("stack", "push", book("book")).code == 0
    random_codebook(tiny, FACTS[2:], seed=9).save(tmp_path / "more")
    assert cli("stack", "push", tmp_path / "more").code == 0
    ran = cli("stack", "fold", "--name", "all")
    assert ran.code == 0, ran.err
    assert [(row["name"], row["mode"]) for row in series(cli)] == [("all", "overlay")]
    assert cli("stack", "split", "all").code == 0
    assert len(series(cli)) == 2


@pytest.mark.parametrize(
    "command",
    [
        ("patch", "apply", "{}", "-m", "base", "-o", "out"),
        ("materialize", "--patch", "{}", "-m", "base", "-o", "out"),
        ("export", "{}", "--to", "lora", "-o", "out"),
        ("export", "{}", "--to", "checkpoint", "-m", "base", "-o", "out"),
        ("export", "{}", "--to", "gguf-lora", "-m", "base", "-o", "out"),
    ],
)
def test_a_codebook_is_never_written_as_weights(cli, empty, book, tmp_path, command):
    path = book("book")
    ran = cli(*(word.format(path) for word in command))
    assert ran.code == 4
    assert "EK-P09" in ran.err
    assert "gate.codebook/1" in ran.err
    assert not (tmp_path / "out").exists()
