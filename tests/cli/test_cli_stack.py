"""`editkit stack` on a tiny checkpoint: what each command does, says and leaves on disk."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from editkit_core import Patch

WEIGHT = "transformer.h.1.mlp.c_proj.weight"


def names(rows: list[dict[str, object]]) -> list[object]:
    return [row["name"] for row in rows]


def series(cli) -> list[dict[str, object]]:
    return cli("stack", "series", "--json").json


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def merged(base: Path, files: dict[Path, float]) -> str:
    """sha256 of the weight with the patches, by numpy: cast(W + Σ scale·(U V)ᵀ)."""
    weight = load_file(base / "model.safetensors")[WEIGHT]
    total = weight.astype(np.float64)
    for file, scale in files.items():
        for entry in Patch.load(file).entries:
            u, v = (np.asarray(part, dtype=np.float64) for part in (entry.u, entry.v))
            total += scale * (u @ v).T
    return hashlib.sha256(total.astype(weight.dtype).tobytes()).hexdigest()


def told(stack: Path) -> str:
    """sha256 of the weight, as the stack says it is."""
    return json.loads((stack / "stack.json").read_text())["tensors"][WEIGHT]["sha256"]


# -- init ---------------------------------------------------------------------------------------


def test_init_makes_an_empty_stack_and_says_what_comes_next(cli, tiny_folder, tmp_path):
    ran = cli("stack", "init", "--model", tiny_folder)
    assert ran.code == 0, ran.err
    assert "editkit stack push" in ran.out
    assert (tmp_path / ".editkit" / "stack.json").is_file()
    assert series(cli) == []


def test_init_never_prints_the_folders_of_this_machine(cli, tiny_folder):
    assert str(tiny_folder) not in cli("stack", "init", "--model", tiny_folder).out


def test_a_stack_lives_where_the_option_or_the_environment_says(
    cli, tiny_folder, tmp_path, monkeypatch
):
    assert cli("stack", "init", "-m", tiny_folder, "--stack", "one").code == 0
    monkeypatch.setenv("EDITKIT_STACK", str(tmp_path / "one"))
    assert series(cli) == []
    assert cli("stack", "series", "-s", "two").code == 1


# -- push, pop, goto ------------------------------------------------------------------------------


def test_push_applies_in_order_and_names_patches_by_their_files(cli, stack):
    rows = series(cli)
    assert names(rows) == ["oslo", "warsaw", "fuji"]
    assert all(row["active"] for row in rows)
    assert cli("stack", "top", "--json").json["name"] == "fuji"


def test_the_stack_says_the_weights_that_numpy_computes(cli, stack, file, tmp_path):
    files = dict.fromkeys((file("oslo"), file("warsaw"), file("fuji")), 1.0)
    assert told(stack) == merged(tmp_path / "base", files)
    assert cli("stack", "scale", "warsaw", "-0.5").code == 0
    assert cli("stack", "disable", "oslo").code == 0
    assert told(stack) == merged(tmp_path / "base", {file("warsaw"): -0.5, file("fuji"): 1.0})


def test_pop_unapplies_the_top_and_push_applies_it_again(cli, stack):
    before = told(stack)
    ran = cli("stack", "pop")
    assert "Unapplied" in ran.out
    assert "fuji" in ran.out
    assert names(cli("stack", "applied", "--json").json) == ["oslo", "warsaw"]
    assert names(series(cli)) == ["oslo", "warsaw", "fuji"]
    assert "Applied" in cli("stack", "push").out
    assert told(stack) == before


def test_pop_all_and_push_all_go_to_the_base_and_back(cli, stack):
    before = told(stack)
    assert cli("stack", "pop", "--all").code == 0
    assert cli("stack", "applied", "--json").json == []
    assert json.loads((stack / "stack.json").read_text())["tensors"] == {}
    assert cli("stack", "push", "--all").code == 0
    assert told(stack) == before


def test_goto_takes_a_name_a_number_an_id_or_base(cli, stack):
    third = series(cli)[2]["id"]
    for reference, applied in (("base", 0), ("warsaw", 2), ("1", 1), ("#2", 2), (third, 3)):
        ran = cli("stack", "goto", reference, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["position"] == applied


def test_a_patch_pushed_on_a_popped_stack_comes_below_those_that_wait(cli, empty, file):
    assert cli("stack", "push", file("oslo"), file("warsaw")).code == 0
    assert cli("stack", "pop").code == 0
    assert cli("stack", "push", file("fuji")).code == 0
    assert names(series(cli)) == ["oslo", "fuji", "warsaw"]
    assert cli("stack", "top", "--json").json["name"] == "fuji"


def test_a_patch_can_be_pushed_scaled_overlaid_and_disabled(cli, empty, file):
    options = ("--scale", "0.5", "--mode", "overlay", "--disabled")
    assert cli("stack", "push", file("oslo"), *options).code == 0
    (row,) = series(cli)
    assert (row["scale"], row["mode"], row["enabled"]) == (0.5, "overlay", False)
    assert row["applied"]
    assert not row["active"]


def test_a_patch_that_replaces_another_shadows_it_until_it_goes(cli, stack, make):
    old = series(cli)[0]["id"]
    assert cli("stack", "push", make("newer", replaces=(old,))).code == 0
    assert names(series(cli)) == ["oslo", "warsaw", "fuji", "newer"]
    assert [row["shadowed"] for row in series(cli)] == [True, False, False, False]
    shown = cli("stack", "series").out
    assert "shadowed" in shown
    assert "4 of 4 applied, 1 of them replaced by newer ones" in shown
    assert cli("stack", "pop").code == 0
    assert not any(row["shadowed"] for row in series(cli))


def test_going_all_the_way_twice_is_no_mistake(cli, stack):
    assert "Nothing to apply" in cli("stack", "push", "--all").out
    assert cli("stack", "pop", "--all").code == 0
    again = cli("stack", "pop", "--all")
    assert again.code == 0
    assert "Nothing to unapply" in again.out


# -- entries --------------------------------------------------------------------------------------


def test_a_patch_is_taken_out_of_the_middle_and_the_others_stay(cli, stack, file, tmp_path):
    assert cli("stack", "remove", "warsaw").code == 0
    assert names(series(cli)) == ["oslo", "fuji"]
    files = {file("oslo"): 1.0, file("fuji"): 1.0}
    assert told(stack) == merged(tmp_path / "base", files)


def test_disable_and_enable_leave_the_bits_as_they_were(cli, stack):
    before = told(stack)
    assert cli("stack", "disable", "warsaw").code == 0
    assert told(stack) != before
    assert cli("stack", "enable", "warsaw").code == 0
    assert told(stack) == before


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("1", ["fuji", "oslo", "warsaw"]),
        ("bottom", ["fuji", "oslo", "warsaw"]),
        ("2", ["oslo", "fuji", "warsaw"]),
        ("top", ["oslo", "warsaw", "fuji"]),
    ],
)
def test_move_puts_a_patch_elsewhere_and_the_weights_keep_their_bits(cli, stack, place, expected):
    before = told(stack)
    assert cli("stack", "move", "fuji", place).code == 0
    assert names(series(cli)) == expected
    assert told(stack) == before


def test_top_and_bottom_never_change_which_patches_are_applied(cli, stack):
    assert cli("stack", "goto", "warsaw").code == 0
    assert cli("stack", "move", "oslo", "top").code == 0
    assert names(series(cli)) == ["warsaw", "oslo", "fuji"]
    assert cli("stack", "move", "fuji", "bottom").code == 0
    assert names(cli("stack", "applied", "--json").json) == ["warsaw", "oslo"]


def test_an_overlay_is_not_in_the_merged_weights(cli, stack, file, tmp_path):
    assert cli("stack", "mode", "fuji", "overlay").code == 0
    assert told(stack) == merged(tmp_path / "base", {file("oslo"): 1.0, file("warsaw"): 1.0})


def test_what_is_so_already_makes_no_new_version(cli, stack):
    before = snapshot(stack)
    ran = cli("stack", "enable", "oslo")
    assert ran.code == 0
    assert "so already" in ran.out
    assert cli("stack", "enable", "oslo", "--json").json["changed"] is False
    assert snapshot(stack) == before


# -- looking --------------------------------------------------------------------------------------


def test_series_shows_what_each_patch_says_and_how_it_stands(cli, stack):
    assert cli("stack", "pop").code == 0
    assert cli("stack", "disable", "oslo").code == 0
    out = " ".join(cli("stack", "series").out.split())
    for words in ("Norway is -> Lima", "disabled", "waiting", "2 of 3 applied, 1 of them disabled"):
        assert words in out


def test_status_names_base_position_conflicts_and_the_lock_file(cli, stack):
    out = cli("stack", "status").out
    for words in ("base", "3 of 3 applied", "Stale      none", "Conflicts  none", "agrees"):
        assert words in out
    (stack / "editkit.lock").write_text("generation = 0\n")
    assert "editkit stack doctor" in cli("stack", "status").out
    assert cli("stack", "doctor").code == 0
    assert cli("stack", "status", "--json").json["lock_file"] == "agrees"


def test_check_says_so_when_all_is_well(cli, stack):
    ran = cli("stack", "check")
    assert ran.code == 0
    assert "No conflicts" in ran.out
    assert cli("stack", "check", "--json").json == {"ok": True, "conflicts": [], "stale": []}


def test_history_lists_every_version_and_goes_back_to_one(cli, stack):
    before = told(stack)
    assert cli("stack", "remove", "oslo").code == 0
    assert [row["action"].split()[0] for row in cli("stack", "history", "--json").json] == [
        "init",
        "push",
        "remove",
    ]
    ran = cli("stack", "history", "--restore", "1")
    assert ran.code == 0, ran.err
    assert "version 1, as version 3" in ran.out
    assert names(series(cli)) == ["oslo", "warsaw", "fuji"]
    assert told(stack) == before


def test_gc_removes_the_files_of_patches_taken_out_once_the_history_is_dropped(cli, stack):
    assert cli("stack", "remove", "oslo").code == 0
    assert "nothing to remove" in cli("stack", "gc").out
    ran = cli("stack", "gc", "--drop-history", "--json")
    assert len(ran.json["objects"]) == 1
    assert len(list(stack.rglob("*.safetensors"))) == 2
    assert cli("stack", "doctor").code == 0


def test_doctor_finds_the_stack_sound(cli, stack):
    ran = cli("stack", "doctor", "--full")
    assert ran.code == 0
    assert "sound" in ran.out
    assert cli("stack", "doctor", "--json").json["ok"] is True


# -- dry runs, JSON, and what is imported -----------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("pop",),
        ("pop", "--all"),
        ("goto", "base"),
        ("disable", "oslo"),
        ("scale", "oslo", "2"),
        ("mode", "oslo", "overlay"),
        ("move", "oslo", "top"),
        ("remove", "oslo", "fuji"),
        ("fold",),
        ("history", "--restore", "0"),
    ],
)
def test_a_dry_run_says_what_would_be_and_writes_nothing(cli, stack, arguments):
    before = snapshot(stack)
    ran = cli("stack", *arguments, "--dry-run")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("Would ")
    planned = cli("stack", *arguments, "--dry-run", "--json").json
    assert planned["dry_run"] is True
    assert planned["changed"] is True
    assert snapshot(stack) == before


def test_a_dry_run_of_push_shows_the_stack_that_would_be(cli, empty, file):
    before = snapshot(empty)
    ran = cli("stack", "push", file("oslo"), "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert names(ran.json["entries"]) == ["oslo"]
    assert snapshot(empty) == before


def test_a_dry_run_of_init_gc_and_doctor_writes_nothing(cli, stack, tiny_folder, tmp_path):
    assert cli("stack", "init", "-m", tiny_folder, "-s", "new", "--dry-run").code == 0
    assert not (tmp_path / "new").exists()
    assert cli("stack", "remove", "oslo").code == 0
    (stack / "editkit.lock").unlink()
    before = snapshot(stack)
    assert "Would remove" in cli("stack", "gc", "--drop-history", "--dry-run").out
    assert cli("stack", "doctor", "--dry-run").code == 7, "the lock file is missing"
    assert snapshot(stack) == before


@pytest.mark.parametrize("command", ["series", "applied", "top", "status", "check", "history"])
def test_what_is_only_looked_at_prints_json_and_changes_nothing(cli, stack, command):
    before = snapshot(stack)
    ran = cli("stack", command, "--json")
    assert ran.code == 0, ran.err
    assert ran.json
    assert snapshot(stack) == before


def test_looking_at_a_stack_imports_no_torch(cli, stack):
    code = (
        "import sys\n"
        "from editkit_core.cli import main\n"
        "for words in (['--help'], ['series'], ['status'], ['check'], ['history']):\n"
        "    try:\n"
        "        main(['stack', *words])\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 0, words\n"
        "assert 'torch' not in sys.modules\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=stack.parent, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_texts_of_a_patch_cannot_steer_the_terminal(cli, empty, make):
    assert cli("stack", "push", make("sly", name="red \x1b[31m")).code == 0
    for command in ("series", "top", "status", "history", "check"):
        assert "\x1b" not in cli("stack", command).out
    assert "\x1b" not in cli("stack", "goto", "blue").err
