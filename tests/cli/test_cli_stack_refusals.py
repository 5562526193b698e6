"""What a person would type wrong on a stack: its error, its exit code, and nothing changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from editkit_core import EditRequest
from editkit_core.models.editable import EditableModel
from editkit_core.stack.store.writer import writing
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch

LOOKS = (("series",), ("applied",), ("top",), ("status",), ("check",), ("history",))
CHANGES = (("push",), ("pop",), ("goto", "base"), ("rebase",), ("fold",), ("gc",), ("doctor",))


def state(stack: Path) -> str:
    return (stack / "stack.json").read_text()


def objects(stack: Path) -> list[Path]:
    return sorted(stack.rglob("*.safetensors"))


@pytest.mark.parametrize("command", [*LOOKS, *CHANGES])
def test_without_a_stack_every_command_names_init(cli, tmp_path, command):
    ran = cli("stack", *command)
    assert ran.code == 1
    assert "EK-F03" in ran.err
    assert "editkit stack init" in ran.err
    assert ran.err.count("\n") == 1, "one line"
    assert not (tmp_path / ".editkit").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code", "word"),
    [
        (("goto", "oslp"), 1, "EK-K01", "Did you mean 'oslo'?"),
        (("disable", "9"), 1, "EK-K01", "it holds"),
        (("remove", "oslo", "nobody"), 1, "EK-K01", "nobody"),
        (("move", "oslo", "9"), 1, "EK-K00", "from 1 to 3"),
        (("move", "oslo", "0"), 1, "EK-K00", "from 1 to 3"),
        (("move", "oslo", "botom"), 1, "EK-K00", "Did you mean 'bottom'?"),
        (("scale", "oslo", "0"), 1, "EK-H02", "Disable"),
        (("scale", "oslo", "nan"), 1, "EK-H02", "number"),
        (("push",), 1, "EK-K00", "applied already"),
        (("push", "none.safetensors"), 1, "EK-F03", "none.safetensors"),
        (("push", "oslo"), 1, "EK-F03", "editkit stack goto"),
        (("history", "--restore", "7"), 1, "EK-K00", "version"),
        (("fold", "oslo"), 1, "EK-K00", "two"),
        (("split", "oslo"), 4, "EK-P09", "1 edit"),
    ],
)
def test_a_wrong_word_is_refused_by_name(cli, stack, arguments, exit_code, code, word):
    before = state(stack)
    ran = cli("stack", *arguments)
    assert ran.code == exit_code
    assert code in ran.err
    assert word in ran.err
    assert ran.err.count("\n") == 1, "one line"
    assert state(stack) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("push", "a", "--all"),
        ("push", "--scale", "2"),
        ("push", "--disabled"),
        ("scale", "oslo", "much"),
        ("mode", "oslo", "melt"),
        ("goto",),
        ("remove",),
        ("popp",),
        ("init",),
        ("check", "--threshold", "-1"),
    ],
)
def test_what_is_not_understood_is_a_usage_error(cli, stack, arguments):
    before = state(stack)
    ran = cli("stack", *arguments)
    assert ran.code == 2
    assert "Usage:" in ran.err
    assert state(stack) == before


def test_popping_an_empty_stack_says_that_nothing_is_applied(cli, empty):
    for command in ("pop", "top"):
        ran = cli("stack", command)
        assert ran.code == 1
        assert "No patch of the stack is applied" in ran.err


def test_an_error_is_json_when_json_was_asked_for(cli, stack):
    ran = cli("stack", "goto", "oslp", "--json")
    assert ran.code == 1
    assert ran.json["error"]["code"] == "EK-K01"


def test_a_folder_in_use_is_not_made_a_stack(cli, stack, tiny_folder, tmp_path):
    before = state(stack)
    again = cli("stack", "init", "-m", tiny_folder)
    assert (again.code, "EK-F01" in again.err) == (1, True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for words in ((), ("--dry-run",)):
        other = cli("stack", "init", "-m", tiny_folder, "-s", "notes", *words)
        assert (other.code, "EK-F01" in other.err) == (1, True)
    assert state(stack) == before
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_a_stack_needs_a_base_that_is_there(cli, tmp_path):
    ran = cli("stack", "init", "-m", tmp_path / "no" / "model")
    assert ran.code == 1
    assert "EK-M01" in ran.err
    assert not (tmp_path / ".editkit").exists()


# -- conflicts: exit code 5 -----------------------------------------------------------------------


def test_the_same_patch_twice_is_a_conflict_and_leaves_no_file(cli, stack, file):
    before, kept = state(stack), objects(stack)
    for words in ((), ("--dry-run",), ("--force",)):
        ran = cli("stack", "push", file("oslo"), *words)
        assert ran.code == 5
        assert "EK-K02" in ran.err
        assert "in the stack already" in ran.err
    assert state(stack) == before
    assert objects(stack) == kept


def test_two_patches_with_other_targets_conflict_unless_forced(cli, stack, make):
    edit = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Delft")
    other, before = make("other", "fuji", edits=(edit,)), state(stack)
    refused = cli("stack", "push", other)
    assert refused.code == 5
    assert "EK-K02" in refused.err
    assert "Delft" in refused.err
    assert "Lima" in refused.err
    assert state(stack) == before
    forced = cli("stack", "push", other, "--force")
    assert forced.code == 0
    assert "Warning" in forced.err
    found = cli("stack", "check", "--json")
    assert found.code == 5
    assert found.json["conflicts"][0]["kind"] == "contradiction"
    assert "contradiction" in cli("stack", "check").out
    assert "editkit stack check" in cli("stack", "status").out


def test_check_looks_at_a_file_as_if_it_were_pushed(cli, stack, make):
    edit = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Delft")
    before = state(stack)
    ran = cli("stack", "check", make("other", "fuji", edits=(edit,)))
    assert ran.code == 5
    assert "#1, #4" in ran.out
    assert state(stack) == before


def test_a_disabled_patch_may_contradict_until_it_is_enabled(cli, stack, make):
    edit = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Delft")
    assert cli("stack", "push", make("other", "fuji", edits=(edit,)), "--disabled").code == 0
    assert cli("stack", "check").code == 0
    assert cli("stack", "enable", "other").code == 5
    assert cli("stack", "disable", "oslo").code == 0
    assert cli("stack", "enable", "other").code == 0


@pytest.mark.parametrize(
    "arguments", [("remove", "oslo"), ("disable", "oslo"), ("move", "oslo", "top")]
)
def test_what_another_patch_requires_is_not_taken_from_below_it(cli, stack, make, arguments):
    needed = cli("stack", "series", "--json").json[0]["id"]
    edit = EditRequest(prompt="Ada wrote {}", subject="code", target_new="verse")
    assert cli("stack", "push", make("upper", edits=(edit,), requires=(needed,))).code == 0
    ran = cli("stack", *arguments)
    assert ran.code == 5
    assert "requires" in ran.err
    assert cli("stack", *arguments, "--force").code == 0
    assert cli("stack", "check").code == 5


def test_one_of_two_damaged_patches_can_be_taken_out(cli, stack):
    for name in ("oslo", "warsaw"):
        series_file(cli, stack, name).write_bytes(b"")
    assert cli("stack", "pop", "--all").code == 0
    assert cli("stack", "remove", "oslo").code == 0
    assert cli("stack", "remove", "warsaw").code == 0
    assert cli("stack", "push").code == 0


def test_crosstalk_is_told_with_its_size(cli, empty, tiny, tmp_path):
    for seed in (1, 2):
        random_patch(tiny, seed=seed, evidence=True).save(tmp_path / f"{seed}.safetensors")
    assert cli("stack", "push", tmp_path / "1.safetensors", "--force").code == 0
    assert cli("stack", "push", tmp_path / "2.safetensors", "--force").code == 0
    rows = cli("stack", "check", "--threshold", "0", "--json").json["conflicts"]
    found = {(row["lower"], row["upper"]): row["value"] for row in rows if row["value"]}
    assert found
    assert "%" in cli("stack", "check", "--threshold", "0").out
    none = cli("stack", "check", "--threshold", "1e9", "--json").json["conflicts"]
    assert "crosstalk" not in [row["kind"] for row in none]


def test_a_patch_computed_on_another_stack_is_stale_unless_forced(cli, stack, make):
    before = state(stack)
    stale = make("stale", "oslo", computed_on="0" * 64, edits=())
    refused = cli("stack", "push", stale)
    assert refused.code == 5
    assert "EK-K03" in refused.err
    assert "--rebase" in refused.err
    assert state(stack) == before
    assert cli("stack", "push", stale, "--force").code == 0
    assert "Stale: " in cli("stack", "pop").err + cli("stack", "push", "--force").err
    checked = cli("stack", "check")
    assert checked.code == 5
    assert "stale" in checked.out


def test_a_stale_patch_without_requests_cannot_be_computed_again(cli, stack, make):
    assert cli("stack", "push", make("stale", computed_on="0" * 64, edits=()), "--force").code == 0
    before = state(stack)
    ran = cli("stack", "rebase")
    assert ran.code == 5
    assert "no requests" in ran.err
    assert state(stack) == before


def test_while_another_process_writes_the_stack_is_locked(cli, stack, monkeypatch):
    monkeypatch.setattr("editkit_core.stack.store.store._WAIT_S", 0.05)
    before = state(stack)
    with writing(stack, 1):
        ran = cli("stack", "pop")
        assert cli("stack", "series").code == 0, "readers wait for nobody"
    assert ran.code == 5
    assert "EK-K04" in ran.err
    assert state(stack) == before


# -- another base: exit code 6 --------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--disabled",), ("--mode", "overlay"), ("--dry-run",)])
def test_a_patch_for_another_base_is_refused_in_every_mode(cli, stack, tmp_path, words):
    other = tmp_path / "other.editkit.safetensors"
    random_patch(tiny_model("gpt2", seed=9)).save(other)
    before, kept = state(stack), objects(stack)
    ran = cli("stack", "push", other, *words)
    assert ran.code == 6
    assert "EK-P03" in ran.err
    assert state(stack) == before
    assert objects(stack) == kept


def test_a_patch_for_a_base_of_another_size_is_refused_before_it_is_compared(cli, stack, tmp_path):
    other = tmp_path / "other.editkit.safetensors"
    random_patch(tiny_model("gpt2", d=48)).save(other)
    assert cli("stack", "push", other).code == 6
    assert cli("stack", "check", other).code == 6


def test_generate_refuses_a_stack_of_another_base(cli, stack, tmp_path):
    folder = tmp_path / "other"
    other: EditableModel = tiny_model("gpt2", seed=9)
    other.model.save_pretrained(folder)
    other.tokenizer.save_pretrained(folder)
    ran = cli("generate", "--stack", stack, "--model", folder, "--prompt", "The")
    assert ran.code == 6
    assert "EK-P03" in ran.err


# -- damage: exit code 7 ----------------------------------------------------------------------


def test_a_foreign_file_is_refused_as_a_patch(cli, stack, tmp_path):
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    ran = cli("stack", "push", tmp_path / "page.safetensors")
    assert ran.code == 7
    assert "EK-P01" in ran.err


def test_a_damaged_patch_file_is_named_and_can_be_taken_out(cli, stack):
    victim = series_file(cli, stack, "warsaw")
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x00")
    assert "damaged" in cli("stack", "series").out, "the others are still listed"
    assert victim.name[:16] in cli("stack", "status").out
    found = cli("stack", "doctor")
    assert found.code == 7
    assert "FAILED" in found.out
    assert cli("stack", "scale", "warsaw", "2").code == 7
    assert cli("stack", "remove", "warsaw").code == 0
    assert cli("stack", "doctor").code == 0


def test_a_patch_file_put_back_repairs_the_stack(cli, stack, file):
    victim = series_file(cli, stack, "warsaw")
    victim.unlink()
    assert cli("stack", "doctor").code == 7
    shutil.copy(file("warsaw"), victim)
    assert cli("stack", "doctor").code == 0


@pytest.mark.parametrize("command", [*LOOKS, *CHANGES])
def test_a_changed_stack_file_is_corrupt(cli, stack, command):
    document = json.loads(state(stack))
    document["state"]["position"] = 1
    (stack / "stack.json").write_text(json.dumps(document))
    ran = cli("stack", *command)
    assert ran.code == 7
    assert "EK-K05" in ran.err


def test_doctor_sees_that_the_base_was_changed(cli, stack, tmp_path):
    weights = tmp_path / "base" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert cli("stack", "doctor", "--full").code == 7


def series_file(cli, stack: Path, name: str) -> Path:
    rows = cli("stack", "series", "--json").json
    (digest,) = (row["file_sha256"] for row in rows if row["name"] == name)
    return stack / "objects" / digest[:2] / f"{digest}.editkit.safetensors"
