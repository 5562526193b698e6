"""Patches on checkpoint folders: a new folder, an untouched source, the way back bit for bit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import rfc8785
import torch
from checkpoints import saved, state
from transformers import AutoModelForCausalLM

from editkit_core.errors import (
    ApplyError,
    BaseMismatchError,
    InputNotFoundError,
    OutputExistsError,
    PatchError,
    PatchFormatError,
    RevertError,
    WriteFailedError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.patch import Patch, apply_patch, revert_folder, write_patched
from editkit_core.patch import checkpoint_edit as edit
from editkit_core.patch.checkpoint import read_shard
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch


def checkpoint(
    path: Path, family: str = "gpt2", dtype: torch.dtype = torch.float16, shard: str = "5GB"
) -> Path:
    saved(path, family, dtype, shard)
    (path / "notes").mkdir()
    (path / "notes" / "README.md").write_text("kept")
    return path


def patch_for(folder: Path, **options: object) -> Patch:
    model = EditableModel.from_pretrained(str(folder), dtype="float32")
    return random_patch(model, **({"layers": (0, 2), "rank": 2} | options))  # type: ignore[arg-type]  # options of random_patch


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "source")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shard", ["5GB", "30KB"])
def test_apply_writes_a_new_folder_and_revert_restores_every_file(
    tmp_path: Path, family: str, dtype: torch.dtype, shard: str
) -> None:
    folder = checkpoint(tmp_path / "source", family, dtype, shard)
    before, patch = state(folder), patch_for(folder)
    report = write_patched(folder, patch, tmp_path / "out")
    after = state(tmp_path / "out")
    assert state(folder) == before
    assert {name for name in before if after[name] != before[name]} == set(report.weights)
    assert len(report.weights) == (1 if shard == "5GB" else 2)
    revert_folder(tmp_path / "out")
    assert state(tmp_path / "out") == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_folder_holds_what_merging_in_memory_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = checkpoint(tmp_path / "source", dtype=dtype)
    patch = patch_for(folder, rank=3)
    write_patched(folder, patch, tmp_path / "out")
    name = str(dtype).removeprefix("torch.")
    with apply_patch(model := EditableModel.from_pretrained(str(folder), dtype=name), patch):
        expected = model.state_digest()
    written = EditableModel.from_pretrained(str(tmp_path / "out"), dtype=name)
    assert written.state_digest() == expected


def test_transformers_loads_the_folder(tmp_path: Path, source: Path) -> None:
    write_patched(source, patch_for(source), tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_the_weights_file_keeps_its_layout(tmp_path: Path, source: Path) -> None:
    write_patched(source, patch_for(source), tmp_path / "out")
    old, new = (read_shard(f / "model.safetensors") for f in (source, tmp_path / "out"))
    assert old.layout == new.layout
    head = slice(0, old.data_start)
    assert old.path.read_bytes()[head] == new.path.read_bytes()[head]


def test_only_the_touched_tensors_differ(tmp_path: Path, source: Path) -> None:
    report = write_patched(source, patch_for(source), tmp_path / "out")
    old, new = (read_shard(f / "model.safetensors") for f in (source, tmp_path / "out"))
    changed = {n for n, s in old.slots.items() if old.read(s) != new.read(new.slots[n])}
    assert changed == set(report.tensors)


def test_the_record_is_canonical_and_names_no_folder(tmp_path: Path, source: Path) -> None:
    patch = patch_for(source)
    write_patched(source, patch, tmp_path / "out")
    text = (tmp_path / "out" / "editkit.json").read_bytes()
    record = json.loads(text)
    assert rfc8785.dumps(record) == text
    assert record["patch"]["id"] == patch.id
    assert record["patch"]["content_digest"] == patch.header.content_digest
    assert record["base"] == record["source"] == "source"
    assert str(tmp_path) not in text.decode()
    kept = tmp_path / "out" / record["patch"]["file"]
    assert record["patch"]["sha256"] == hashlib.sha256(kept.read_bytes()).hexdigest()
    assert Patch.load(kept).id == patch.id
    for name, tensor in record["tensors"].items():
        stated = patch.header.base.tensors[name]
        assert tensor["pristine_sha256"] == stated.sha256


def test_a_dry_run_checks_and_writes_nothing(tmp_path: Path, source: Path) -> None:
    report = write_patched(source, patch_for(source), tmp_path / "out", dry_run=True)
    assert report.dry_run
    assert sorted(os.listdir(tmp_path)) == ["source"]
    write_patched(source, patch_for(source), tmp_path / "out")
    before = state(tmp_path / "out")
    assert revert_folder(tmp_path / "out", dry_run=True).tensors == report.tensors
    assert state(tmp_path / "out") == before


def test_a_wrong_base_is_refused_with_both_digests(tmp_path: Path, source: Path) -> None:
    patch = random_patch(tiny_model("gpt2", seed=9))
    with pytest.raises(BaseMismatchError) as caught:
        write_patched(source, patch, tmp_path / "out")
    name = patch.entries[0].site.parameter
    shard = read_shard(source / "model.safetensors")
    found = hashlib.sha256(shard.read(shard.slots[name])).hexdigest()
    assert found in str(caught.value)
    assert patch.header.base.tensors[name].sha256 in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_change_that_overflows_the_files_dtype_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ApplyError, match="overflow"):
        write_patched(source, patch_for(source, scale=1e6), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_source_is_never_the_output(tmp_path: Path, source: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    before, patch = state(source), patch_for(source)
    for out in (source, source / "inside", tmp_path, tmp_path / "link"):
        with pytest.raises(OutputExistsError, match="source is never changed"):
            write_patched(source, patch, out, force=True)
    assert state(source) == before


def test_an_existing_folder_needs_force(tmp_path: Path, source: Path) -> None:
    patch, out = patch_for(source), tmp_path / "out"
    write_patched(source, patch, out)
    before = state(out)
    with pytest.raises(OutputExistsError, match="--force"):
        write_patched(source, patch_for(source, seed=5), out)
    assert state(out) == before
    write_patched(source, patch_for(source, seed=5), out, force=True)
    assert state(out) != before
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


def test_an_empty_folder_is_used(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    write_patched(source, patch_for(source), tmp_path / "out")
    assert (tmp_path / "out" / "editkit.json").is_file()


def test_force_does_not_remove_a_folder_that_is_no_model(tmp_path: Path, source: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match="something else than a model"):
        write_patched(source, patch_for(source), tmp_path / "home", force=True)
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_a_patched_folder_is_not_patched_again(tmp_path: Path, source: Path) -> None:
    patch = patch_for(source)
    write_patched(source, patch, tmp_path / "out")
    with pytest.raises(ApplyError, match="patch applied already"):
        write_patched(tmp_path / "out", patch, tmp_path / "more")


def test_what_is_no_model_folder_is_refused(tmp_path: Path, source: Path) -> None:
    patch = patch_for(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputNotFoundError, match=r"no config\.json"):
        write_patched(tmp_path / "empty", patch, tmp_path / "out")
    with pytest.raises(InputNotFoundError, match="applied no patch"):
        revert_folder(source)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_full_disk_or_ctrl_c_while_applying_leaves_everything_as_it_was(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, call: int
) -> None:
    patch, out = patch_for(source), tmp_path / "out"
    write_patched(source, patch_for(source, seed=3), out)
    before = state(tmp_path)
    calls = []

    def failing(path: Path, pieces: Iterable[bytes], **options: object) -> None:
        calls.append(path)
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)
                if len(calls) == call:
                    raise error

    monkeypatch.setattr("editkit_core.patch.checkpoint_edit.write_file", failing)
    monkeypatch.setattr("editkit_core.patch.checkpoint_undo.write_file", failing)
    monkeypatch.setattr("editkit_core.patch.io.write_file", failing)
    expected = WriteFailedError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_patched(source, patch, out, force=True)
    assert state(tmp_path) == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_an_interrupted_revert_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    source = checkpoint(tmp_path / "source", shard="30KB")
    write_patched(source, patch_for(source), tmp_path / "out")
    real, calls = edit.write_file, []

    def failing(path: Path, pieces: Iterable[bytes], *, force: bool = False) -> None:
        calls.append(path)

        def interrupted() -> Iterable[bytes]:
            yield from pieces
            if len(calls) == 2:
                raise error

        real(path, interrupted(), force=force)

    with monkeypatch.context() as patched:
        patched.setattr(edit, "write_file", failing)
        with pytest.raises((WriteFailedError, KeyboardInterrupt)):
            revert_folder(tmp_path / "out")
    assert not [name for name in os.listdir(tmp_path / "out") if name.endswith(".tmp")]
    revert_folder(tmp_path / "out")
    assert state(tmp_path / "out") == state(source)


def damage(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_weights_changed_since_are_not_overwritten(tmp_path: Path, source: Path) -> None:
    report = write_patched(source, patch_for(source), tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    shard = read_shard(weights)
    touched = shard.slots[report.tensors[0]]
    other = next(s for n, s in shard.slots.items() if n not in report.tensors)
    for slot, match in ((touched, "was changed after"), (other, "besides the patch")):
        damage(weights, shard.data_start + slot.start)
        before = state(tmp_path / "out")
        with pytest.raises(RevertError, match=match):
            revert_folder(tmp_path / "out")
        assert state(tmp_path / "out") == before
        damage(weights, shard.data_start + slot.start)
    revert_folder(tmp_path / "out")


def test_damaged_pristine_bytes_are_refused(tmp_path: Path, source: Path) -> None:
    write_patched(source, patch_for(source), tmp_path / "out")
    damage(tmp_path / "out" / "editkit-pristine.safetensors", -1)
    before = state(tmp_path / "out")
    with pytest.raises(RevertError, match=r"editkit-pristine.*was changed"):
        revert_folder(tmp_path / "out")
    assert state(tmp_path / "out") == before


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(surprise=1),
        lambda record: record.pop("weights"),
        lambda record: record.update(spec="editkit.folder/9"),
        lambda record: record["patch"].update(file="../source/config.json"),
        lambda record: record["weights"].update({"../x": next(iter(record["weights"].values()))}),
    ],
)
def test_a_record_that_was_tampered_with_is_refused(
    tmp_path: Path, source: Path, change: object
) -> None:
    write_patched(source, patch_for(source), tmp_path / "out")
    path = tmp_path / "out" / "editkit.json"
    record = json.loads(path.read_bytes())
    change(record)  # type: ignore[operator]  # one of the functions above
    path.write_text(json.dumps(record))
    before = state(tmp_path)
    with pytest.raises(PatchFormatError, match="damaged"):
        revert_folder(tmp_path / "out")
    assert state(tmp_path) == before


def test_a_source_read_through_links_as_the_hub_cache_makes_them_is_copied_whole(
    tmp_path: Path, source: Path
) -> None:
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for file in source.iterdir():
        (linked / file.name).symlink_to(file)
    shutil.rmtree(source / "notes")
    (linked / "notes").unlink()
    write_patched(linked, patch_for(linked), tmp_path / "out")
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())
    revert_folder(tmp_path / "out")
    assert state(tmp_path / "out") == state(source)


def test_a_missing_parent_folder_is_told(tmp_path: Path, source: Path) -> None:
    with pytest.raises(WriteFailedError, match="does not exist"):
        write_patched(source, patch_for(source), tmp_path / "no" / "out")


def test_a_checkpoint_without_the_weight_is_refused(tmp_path: Path, source: Path) -> None:
    patch = random_patch(tiny_model("llama"))
    with pytest.raises((InputNotFoundError, PatchError), match="do not hold"):
        write_patched(source, patch, tmp_path / "out")
