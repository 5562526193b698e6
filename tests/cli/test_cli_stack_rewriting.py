"""`editkit stack fold, split`: one patch of several and back, the weights bit for bit the same."""

from __future__ import annotations

import json
from pathlib import Path

from editkit_core import EditRequest, Patch

WEIGHT = "transformer.h.1.mlp.c_proj.weight"


def told(stack: Path) -> str:
    return json.loads((stack / "stack.json").read_text())["tensors"][WEIGHT]["sha256"]


def names(cli) -> list[object]:
    return [row["name"] for row in cli("stack", "series", "--json").json]


def test_fold_makes_one_patch_of_all_that_count_and_keeps_the_bits(cli, stack):
    before = told(stack)
    ran = cli("stack", "fold", "--name", "three")
    assert ran.code == 0, ran.err
    assert names(cli) == ["three"]
    assert told(stack) == before
    assert cli("stack", "doctor").code == 0


def test_split_gives_the_folded_patches_back(cli, stack):
    before = [row["id"] for row in cli("stack", "series", "--json").json]
    assert cli("stack", "fold", "oslo", "warsaw", "--name", "two").code == 0
    assert names(cli) == ["two", "fuji"]
    ran = cli("stack", "split", "two")
    assert ran.code == 0, ran.err
    assert [row["id"] for row in cli("stack", "series", "--json").json] == before
    assert cli("stack", "status", "--json").json["position"] == 3


def test_the_fold_of_patches_that_are_apart_takes_the_place_of_the_lowest(cli, stack):
    before = told(stack)
    assert cli("stack", "fold", "fuji", "oslo", "--name", "outer").code == 0
    assert names(cli) == ["outer", "warsaw"]
    assert told(stack) == before


def test_a_fold_keeps_what_waits_above_it_waiting(cli, stack):
    assert cli("stack", "pop").code == 0
    assert cli("stack", "fold", "--name", "two").code == 0
    assert names(cli) == ["two", "fuji"]
    assert [row["name"] for row in cli("stack", "applied", "--json").json] == ["two"]


def test_a_patch_that_waits_is_split_in_its_place_and_its_parts_wait(cli, stack):
    assert cli("stack", "fold", "warsaw", "fuji", "--name", "two").code == 0
    assert cli("stack", "goto", "base").code == 0
    assert cli("stack", "split", "two").code == 0
    assert names(cli) == ["oslo", "two-1", "two-2"]
    assert cli("stack", "status", "--json").json["position"] == 0


def test_a_fold_has_the_scales_in_it(cli, stack):
    assert cli("stack", "scale", "oslo", "0.5").code == 0
    before = told(stack)
    assert cli("stack", "fold", "--name", "three").code == 0
    (row,) = cli("stack", "series", "--json").json
    assert row["scale"] == 1
    path = stack / "objects" / row["file_sha256"][:2] / f"{row['file_sha256']}.editkit.safetensors"
    assert len(Patch.load(path).header.edits) == 3
    assert told(stack) == before, "halving a float32 factor is exact"


def test_what_does_not_count_or_has_another_mode_is_not_folded(cli, stack):
    assert cli("stack", "mode", "fuji", "overlay").code == 0
    mixed = cli("stack", "fold")
    assert (mixed.code, "one mode" in mixed.err) == (1, True)
    assert cli("stack", "disable", "warsaw").code == 0
    idle = cli("stack", "fold", "oslo", "warsaw")
    assert (idle.code, "Apply and enable" in idle.err) == (1, True)


def test_a_folded_overlay_stays_one(cli, stack):
    for name in ("oslo", "warsaw"):
        assert cli("stack", "mode", name, "overlay").code == 0
    assert cli("stack", "fold", "oslo", "warsaw", "--name", "two").code == 0
    assert [row["mode"] for row in cli("stack", "series", "--json").json] == ["overlay", "merge"]


def test_folding_below_a_patch_that_was_computed_on_it_is_refused_unless_forced(cli, stack, make):
    digest = cli("stack", "status", "--json").json["digest"]
    edit = EditRequest(prompt="Ada wrote {}", subject="code", target_new="verse")
    assert cli("stack", "push", make("upper", computed_on=digest, edits=(edit,))).code == 0
    refused = cli("stack", "fold", "oslo", "warsaw")
    assert refused.code == 5
    assert "EK-K03" in refused.err
    assert cli("stack", "fold", "oslo", "warsaw", "--force").code == 0


def test_folding_it_in_too_leaves_nothing_stale(cli, stack, make):
    digest = cli("stack", "status", "--json").json["digest"]
    edit = EditRequest(prompt="Ada wrote {}", subject="code", target_new="verse")
    assert cli("stack", "push", make("upper", computed_on=digest, edits=(edit,))).code == 0
    before = told(stack)
    assert cli("stack", "fold", "--name", "all").code == 0
    assert told(stack) == before
    assert cli("stack", "check").code == 0
