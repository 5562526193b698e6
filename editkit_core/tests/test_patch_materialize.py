"""Plain checkpoints with patches merged in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import saved, state
from transformers import AutoModelForCausalLM

from editkit_core.errors import (
    ApplyError,
    BaseMismatchError,
    InvalidParameterError,
    OutputExistsError,
    WriteFailedError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.patch import Patch, write_patched
from editkit_core.patch.checkpoint import CheckpointSource, read_shard
from editkit_core.patch.checkpoint_change import changes
from editkit_core.patch.materialize import materialize
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch


def checkpoint(
    path: Path, family: str = "gpt2", dtype: torch.dtype = torch.float32, shard: str = "5GB"
) -> Path:
    return saved(path, family, dtype, shard)


def patches_for(folder: Path) -> list[tuple[Patch, float]]:
    model = EditableModel.from_pretrained(str(folder), dtype="float32")
    return [
        (random_patch(model, layers=(0, 2), rank=1, seed=1), 1.0),
        (random_patch(model, layers=(2,), rank=3, seed=2), -0.5),
        (random_patch(model, layers=(1,), rank=None, seed=3), 2.0),
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "source")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shard", ["5GB", "30KB"])
def test_the_checkpoint_is_the_base_plus_the_scaled_changes(
    tmp_path: Path, family: str, dtype: torch.dtype, shard: str
) -> None:
    folder = checkpoint(tmp_path / "source", family, dtype, shard)
    before, patches = state(folder), patches_for(folder)
    done = materialize(folder, patches, tmp_path / "out")
    assert state(folder) == before
    assert set(state(tmp_path / "out")) == set(before)
    assert len(done.weights) == (1 if shard == "5GB" else 3)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    touched = {entry.site.parameter for patch, _ in patches for entry in patch.entries}
    for name, parameter in found.named_parameters():
        if name not in touched:
            assert torch.equal(parameter, base.get_parameter(name))
            continue
        total = base.get_parameter(name).double()
        for patch, scale in patches:
            for entry in patch.entries:
                if entry.site.parameter == name:
                    layout = patch.header.base.tensors[name].layout
                    total = total + scale * entry.delta(layout)
        assert is_nearest(parameter.data, total)


def is_nearest(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Say whether no other number of the type is closer to the wanted one, in float64."""
    error = (found.double() - wanted).abs()
    bits = found.view(torch.int32 if found.element_size() == 4 else torch.int16)
    others = [(bits + step).view(found.dtype).double() for step in (-1, 1)]
    return all(bool(((other - wanted).abs() >= error - 1e-12).all()) for other in others)


def test_any_order_of_the_patches_gives_the_same_bytes(tmp_path: Path, source: Path) -> None:
    patches = patches_for(source)
    materialize(source, patches, tmp_path / "a")
    materialize(source, [patches[2], patches[0], patches[1]], tmp_path / "b")
    assert state(tmp_path / "a") == state(tmp_path / "b")


def test_one_patch_gives_the_weights_that_patch_apply_writes(tmp_path: Path, source: Path) -> None:
    patch = patches_for(source)[0][0]
    materialize(source, [(patch, 1.0)], tmp_path / "plain")
    write_patched(source, patch, tmp_path / "patched")
    name = "model.safetensors"
    assert state(tmp_path / "plain")[name] == state(tmp_path / "patched")[name]


def test_weights_files_keep_their_header(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "source", shard="30KB")
    materialize(folder, patches_for(folder), tmp_path / "out")
    for file in sorted(folder.glob("*.safetensors")):
        assert read_shard(file).layout == read_shard(tmp_path / "out" / file.name).layout


def test_weights_in_other_formats_are_left_out(tmp_path: Path, source: Path) -> None:
    other = ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors"]
    for name in other:
        (source / name).write_text("{}")
    (source / "tokenizer.model").write_text("kept")
    done = materialize(source, patches_for(source), tmp_path / "out")
    assert sorted(done.left_out) == sorted(other)
    assert not any((tmp_path / "out" / name).exists() for name in other)
    assert (tmp_path / "out" / "tokenizer.model").read_text() == "kept"
    assert done.nbytes == sum(f.stat().st_size for f in (tmp_path / "out").iterdir())


def test_a_dry_run_checks_and_writes_nothing(tmp_path: Path, source: Path) -> None:
    patches = patches_for(source)
    dry = materialize(source, patches, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    done = materialize(source, patches, tmp_path / "out")
    assert (dry.tensors, dry.weights, dry.nbytes) == (done.tensors, done.weights, done.nbytes)


def test_a_patch_of_another_base_is_refused_and_named(tmp_path: Path, source: Path) -> None:
    foreign = random_patch(tiny_model("gpt2", seed=5))
    with pytest.raises(BaseMismatchError, match=foreign.header.id):
        materialize(source, [*patches_for(source), (foreign, 1.0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_patches_are_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InvalidParameterError):
        materialize(source, [], tmp_path / "out")


def test_a_scale_that_overflows_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "source", dtype=torch.float16)
    with pytest.raises(ApplyError, match="overflow"):
        materialize(folder, [(patches_for(folder)[0][0], 1e6)], tmp_path / "out")


def test_a_patched_folder_is_no_source(tmp_path: Path, source: Path) -> None:
    patches = patches_for(source)
    write_patched(source, patches[0][0], tmp_path / "patched")
    with pytest.raises(ApplyError, match="has a patch applied"):
        materialize(tmp_path / "patched", patches[1:], tmp_path / "out")


def test_the_output_is_replaced_only_with_force(tmp_path: Path, source: Path) -> None:
    patches = patches_for(source)
    materialize(source, patches, tmp_path / "out")
    with pytest.raises(OutputExistsError):
        materialize(source, patches[:1], tmp_path / "out")
    before = state(tmp_path / "out")
    materialize(source, patches[:1], tmp_path / "out", force=True)
    assert state(tmp_path / "out") != before


def test_a_failed_write_leaves_nothing(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("editkit_core.patch.checkpoint_edit.write_file", full)
    with pytest.raises(WriteFailedError):
        materialize(source, patches_for(source), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# -- changes --------------------------------------------------------------------------------------


def test_changes_name_the_file_and_both_tensors(source: Path) -> None:
    patches = patches_for(source)
    found = changes(CheckpointSource(source), patches)
    assert sorted(found) == [f"transformer.h.{layer}.mlp.c_proj.weight" for layer in range(3)]
    change = found["transformer.h.1.mlp.c_proj.weight"]
    wanted = change.pristine.double() + 2 * patches[2][0].entries[0].delta("in_out")
    assert change.file == "model.safetensors"
    assert torch.equal(change.patched, wanted.float())


def test_no_patches_change_nothing(source: Path) -> None:
    assert changes(CheckpointSource(source), []) == {}


def test_the_index_counts_among_the_files_of_a_sharded_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "source", shard="30KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    wanted = {*index["weight_map"].values(), "model.safetensors.index.json"}
    assert CheckpointSource(folder).files == wanted
