"""Export, import and materialize through the command line, on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from editkit_core.models.editable import EditableModel
from editkit_core.patch import Patch, apply_patch
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A folder with a base and patches of it: one.…, two.… of low rank, full.… of full rank."""
    folder = tmp_path_factory.mktemp("material")
    model = tiny_model("llama", init_std=0.05)
    model.model.save_pretrained(folder / "base", max_shard_size="30KB")
    model.tokenizer.save_pretrained(folder / "base")
    model = EditableModel.from_pretrained(str(folder / "base"))
    for name, rank in (("one", 1), ("two", 3), ("full", None)):
        patch = random_patch(model, rank=rank, seed=len(name), name=name)
        patch.save(folder / f"{name}.editkit.safetensors")
    return folder


@pytest.fixture
def one(material) -> Path:
    return material / "one.editkit.safetensors"


@pytest.fixture
def two(material) -> Path:
    return material / "two.editkit.safetensors"


@pytest.fixture
def full(material) -> Path:
    return material / "full.editkit.safetensors"


@pytest.fixture
def base(material) -> Path:
    return material / "base"


@pytest.fixture
def other(tmp_path) -> Path:
    """A model of the same shape with other weights."""
    model = tiny_model("llama", seed=3)
    model.model.save_pretrained(tmp_path / "other")
    model.tokenizer.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def logits(model: EditableModel) -> torch.Tensor:
    with torch.no_grad():
        return model.model(torch.arange(20).reshape(1, 20)).logits


# -- lora -----------------------------------------------------------------------------------------


def test_export_writes_an_adapter_and_import_reads_it_back(cli, one, two, base):
    ran = cli("export", one, two, "--to", "lora", "-o", "adapter", "--json")
    assert ran.code == 0, ran.out
    assert ran.json["rank"] == 4
    assert ran.json["patches"] == sorted(Patch.load(f).header.id for f in (one, two))
    assert ran.json["bytes"] == sum(file.stat().st_size for file in Path("adapter").iterdir())
    ran = cli("import", "lora", "adapter", "-m", base, "-o", "back.editkit.safetensors", "--json")
    assert ran.code == 0, ran.out
    model = EditableModel.from_pretrained(str(base))
    with apply_patch(model, Patch.load(one)), apply_patch(model, Patch.load(two)):
        wanted = logits(model)
    back = Patch.load("back.editkit.safetensors")
    assert back.header.id == ran.json["id"]
    with apply_patch(model, back):
        assert (logits(model) - wanted).abs().max() <= 2e-6


def test_people_are_told_what_was_written(cli, one):
    ran = cli("export", one, "--to", "lora", "-o", "adapter")
    assert ran.out.startswith("Wrote adapter (")
    assert "rank 1 for model.layers.1.mlp.down_proj, 1 patch(es)." in ran.out


def test_an_existing_adapter_wants_force(cli, one):
    assert cli("export", one, "--to", "lora", "-o", "adapter").code == 0
    ran = cli("export", one, "--to", "lora", "-o", "adapter")
    assert (ran.code, "[EK-F01]" in ran.err) == (1, True)
    assert cli("export", one, "--to", "lora", "-o", "adapter", "--force").code == 0


def test_a_dry_run_writes_nothing(cli, one, base):
    for target in ("lora", "gguf-lora", "checkpoint"):
        ran = cli("export", one, "--to", target, "-m", base, "-o", "out", "--dry-run")
        assert (ran.code, ran.out[:11]) == (0, "Would write"), ran.err
    assert cli("materialize", "--patch", one, "-m", base, "-o", "out", "--dry-run").code == 0
    assert not Path("out").exists()


# -- lossy ----------------------------------------------------------------------------------------


def test_a_full_matrix_is_refused_with_exit_code_4(cli, full):
    ran = cli("export", full, "--to", "lora", "-o", "adapter")
    assert (ran.code, "[EK-P09]" in ran.err, Path("adapter").exists()) == (4, True, False)


def test_a_lossy_export_reports_cosine_and_measured_edits(cli, full, base):
    ran = cli(
        "export", full, "--to", "lora", "--lossy", "--rank", "4", "-m", base, "-o", "a", "--json"
    )
    assert ran.code == 0, ran.out
    (loss,) = ran.json["losses"]
    assert 0 < loss["cosine"] < 1
    assert loss["cosine"] ** 2 + loss["relative_error"] ** 2 == pytest.approx(1, abs=1e-5)
    for part in ("exact", "exported"):
        names = {(score["metric"], score["protocol"]) for score in ran.json["metrics"][part]}
        assert ("reliability", "tf_token") in names
    assert ran.json["notes"] == []


def test_without_the_base_a_lossy_export_says_that_it_was_not_measured(cli, full):
    ran = cli("export", full, "--to", "lora", "--lossy", "--rank", "4", "-o", "adapter")
    assert ran.code == 0
    assert "cosine" in ran.out
    assert "Note: The edits were not measured again" in ran.out


def test_a_lossy_export_prints_tables_for_people(cli, full, base):
    ran = cli("export", full, "--to", "lora", "--lossy", "--rank", "4", "-m", base, "-o", "adapter")
    assert ran.code == 0, ran.err
    assert "reliability" in ran.out
    assert "model.layers.1.mlp.down_proj.weight" in ran.out


def test_a_lossy_export_for_another_base_writes_nothing(cli, full, other):
    ran = cli(
        "export", full, "--to", "lora", "--lossy", "--rank", "4", "-m", other, "-o", "adapter"
    )
    assert (ran.code, Path("adapter").exists()) == (6, False)


@pytest.mark.parametrize(
    "options",
    [
        ("--to", "lora", "--lossy"),
        ("--to", "lora", "--rank", "4"),
        ("--to", "checkpoint", "--lossy", "--rank", "4"),
        ("--to", "lora", "--arch", "llama"),
        ("--to", "onnx"),
        ("--to", "gguf-lora"),
        ("--to", "checkpoint"),
        ("--to", "lora", "--stack", "somewhere"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(cli, one, options):
    ran = cli("export", one, *options, "-o", "out")
    assert (ran.code, Path("out").exists()) == (2, False)


def test_nothing_to_export_is_a_usage_error(cli):
    assert cli("export", "--to", "lora", "-o", "out").code == 2
    assert cli("materialize", "-o", "out").code == 2


# -- gguf -----------------------------------------------------------------------------------------


def test_the_architecture_is_read_from_the_base_or_named(cli, one, base):
    assert cli("export", one, "--to", "gguf-lora", "-m", base, "-o", "a.gguf").code == 0
    assert cli("export", one, "--to", "gguf-lora", "--arch", "llama", "-o", "b.gguf").code == 0
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes()


# -- checkpoint -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["export", "materialize"])
def test_a_plain_checkpoint_holds_the_patches_and_nothing_of_editkit(cli, one, two, base, command):
    files = (one, two) if command == "export" else ("--patch", one, "--patch", two)
    more = ("--to", "checkpoint") if command == "export" else ()
    ran = cli(command, *files, *more, "-m", base, "-o", "plain", "--json")
    assert ran.code == 0, ran.out
    assert {p.name for p in Path("plain").iterdir()} == {p.name for p in base.iterdir()}
    model = EditableModel.from_pretrained(str(base))
    with apply_patch(model, Patch.load(one)), apply_patch(model, Patch.load(two)):
        wanted = model.state_digest()
    assert EditableModel.from_pretrained("plain").state_digest() == wanted


def test_a_patch_of_another_base_has_exit_code_6(cli, one, other):
    ran = cli("materialize", "--patch", one, "-m", other, "-o", "out")
    assert (ran.code, Path("out").exists()) == (6, False)


# -- a stack --------------------------------------------------------------------------------------


@pytest.fixture
def stack(cli, one, two, base):
    assert cli("stack", "init", "-m", base, "-s", "stack").code == 0
    for file in (one, two):
        ran = cli("stack", "push", file, "-s", "stack", "--force")  # both make one edit
        assert ran.code == 0, ran.err
    assert cli("stack", "scale", "2", "0.5", "-s", "stack", "--force").code == 0
    return Path("stack")


def test_a_stack_is_exported_with_its_scales(cli, stack, one, two, base):
    ran = cli("export", "--stack", stack, "--to", "lora", "-o", "adapter", "--json")
    assert ran.code == 0, ran.out
    cli("import", "lora", "adapter", "-m", base, "-o", "back.editkit.safetensors")
    (entry,) = Patch.load("back.editkit.safetensors").entries
    wanted = Patch.load(one).entries[0].delta() + 0.5 * Patch.load(two).entries[0].delta()
    assert (entry.delta() - wanted).abs().max() <= 1e-7


def test_a_stack_knows_its_base(cli, stack):
    assert cli("materialize", "--stack", stack, "-o", "plain").code == 0
    assert cli("export", "--stack", stack, "--to", "gguf-lora", "-o", "a.gguf").code == 0


def test_what_is_not_active_is_left_out(cli, stack, one, base):
    assert cli("stack", "disable", "2", "-s", "stack").code == 0
    assert cli("materialize", "--stack", stack, "-o", "plain").code == 0
    model = EditableModel.from_pretrained(str(base))
    with apply_patch(model, Patch.load(one)):
        wanted = model.state_digest()
    assert EditableModel.from_pretrained("plain").state_digest() == wanted


def test_an_empty_stack_is_refused(cli, base):
    assert cli("stack", "init", "-m", base, "-s", "empty").code == 0
    ran = cli("materialize", "--stack", "empty", "-o", "out", "--json")
    assert ran.code == 1
    assert ran.json["error"]["code"] == "EK-K00"


# -- import ---------------------------------------------------------------------------------------


def test_import_writes_only_with_force_and_not_in_a_dry_run(cli, one, base):
    cli("export", one, "--to", "lora", "-o", "adapter")
    out = Path("back.editkit.safetensors")
    assert cli("import", "lora", "adapter", "-m", base, "-o", out, "--dry-run").code == 0
    assert not out.exists()
    assert cli("import", "lora", "adapter", "-m", base, "-o", out, "--name", "style").code == 0
    assert Patch.load(out).header.name == "style"
    assert cli("import", "lora", "adapter", "-m", base, "-o", out).code == 1
    assert cli("import", "lora", "adapter", "-m", base, "-o", out, "--force").code == 0


def test_a_dora_is_refused_before_the_model_is_loaded(cli, one):
    cli("export", one, "--to", "lora", "-o", "adapter")
    path = Path("adapter/adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    ran = cli("import", "lora", "adapter", "-m", "no/such/model", "-o", "x.editkit.safetensors")
    assert ran.code == 4
    assert "DoRA" in ran.err
