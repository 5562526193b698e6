"""A stack in a folder: made, opened, changed, brought back."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest
import stores
import torch
from stores import content, new_store, object_path, patches_for, push, remove, sha256, stated

from editkit_core.errors import (
    ApplyError,
    BaseMismatchError,
    InputNotFoundError,
    ModelNotFoundError,
    OutputExistsError,
    StackConflictError,
    StackDamagedError,
    StackError,
    UnknownEntryError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.patch import Patch
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import DenseEntry, LowRankEntry
from editkit_core.stack import operations
from editkit_core.stack.state import StackState
from editkit_core.stack.store import StackStore
from editkit_core.testing.patches import random_patch


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stores.saved_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return stores.tiny()


@pytest.fixture(scope="module")
def patches(model: EditableModel) -> list[Patch]:
    return patches_for(model, 5)


@pytest.fixture
def store(tmp_path: Path, base: Path) -> StackStore:
    return new_store(tmp_path / "stack", base)


def merged_by_hand(base: Path, parameter: str, patches: list[tuple[Patch, float]]) -> str:
    """The digest of pristine + Σ scale · (U V)ᵀ for GPT-2's transposed weights, with numpy."""
    total = np.array(stores.weights(base)[parameter], dtype=np.float64)
    for patch, scale in sorted(patches, key=lambda item: item[0].id):
        for entry in patch.entries:
            if isinstance(entry, LowRankEntry) and entry.site.parameter == parameter:
                total += scale * np.outer(entry.v[0].astype(np.float64), entry.u[:, 0])
    return hashlib.sha256(total.astype(np.float32).tobytes()).hexdigest()


# -- making and opening --


def test_a_new_stack_is_empty_and_names_its_base(store: StackStore, base: Path) -> None:
    digest = sha256(base / "model.safetensors")
    record = store.document.base
    assert (store.state, store.generation) == (StackState(), 0)
    assert dict(record.files) == {"model.safetensors": digest}
    assert record.digest == hashlib.sha256(f"model.safetensors\n{digest}\n".encode()).hexdigest()
    assert (record.model, record.folder, record.public) == (str(base), base, "base")


def test_the_base_has_the_configuration_that_patches_name(
    store: StackStore, base: Path, patches: list[Patch]
) -> None:
    loaded = EditableModel.from_pretrained(str(base))
    stated = base_fingerprint(loaded, [patches[0].entries[0].site.parameter]).config_digest
    assert store.document.base.config_digest == stated


def test_a_relative_folder_is_found_from_anywhere(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    StackStore.init(tmp_path / "stack", model="base", base=Path("base"))
    monkeypatch.chdir(tmp_path)
    assert StackStore.open("stack").source().folder == base


def test_a_sharded_base_lists_its_shards_and_index(tmp_path: Path, model: EditableModel) -> None:
    model.model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    files = new_store(tmp_path / "stack", tmp_path / "sharded").document.base.files
    on_disk = {path.name for path in (tmp_path / "sharded").glob("model*")}
    assert len(on_disk) > 2
    assert set(files) == on_disk


def test_a_sharded_base_gives_the_tensors_of_the_whole_one(
    tmp_path: Path, store: StackStore, model: EditableModel, patches: list[Patch]
) -> None:
    model.model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    sharded = new_store(tmp_path / "other", tmp_path / "sharded")
    for patch in patches[:2]:
        assert push(sharded, patch).tensors == push(store, patch).tensors
    assert sharded.doctor(full=True).ok


def test_an_empty_folder_may_become_a_stack(tmp_path: Path, base: Path) -> None:
    (tmp_path / "stack").mkdir()
    assert new_store(tmp_path / "stack", base).generation == 0


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, base: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(OutputExistsError, match="not an empty folder"):
        new_store(tmp_path, base)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_stack_is_not_made_twice(store: StackStore, base: Path) -> None:
    with pytest.raises(OutputExistsError, match="holds a stack already"):
        new_store(store.folder, base)


def test_a_base_without_safetensors_is_refused(tmp_path: Path, base: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_bytes((base / "config.json").read_bytes())
    with pytest.raises(InputNotFoundError, match="no safetensors weights"):
        new_store(tmp_path / "stack", tmp_path / "other")
    assert not (tmp_path / "stack").exists()


def test_a_base_with_a_patch_merged_in_is_refused(
    tmp_path: Path, base: Path, patches: list[Patch]
) -> None:
    from editkit_core.patch import write_patched

    write_patched(base, patches[0], tmp_path / "patched")
    with pytest.raises(ApplyError, match="applied already"):
        new_store(tmp_path / "stack", tmp_path / "patched")


def test_opening_where_no_stack_is_says_how_to_make_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputNotFoundError, match="editkit stack init"):
            StackStore.open(folder)


def test_a_stack_whose_base_went_away_still_opens(tmp_path: Path, model: EditableModel) -> None:
    stores.saved_base(tmp_path / "base")
    new_store(tmp_path / "stack", tmp_path / "base")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ModelNotFoundError, match="no model folder"):
        StackStore.open(tmp_path / "stack").source()


def test_reading_a_stack_imports_no_torch(store: StackStore, patches: list[Patch]) -> None:
    push(store, patches[0])
    code = (
        "import sys; from editkit_core.stack.store import StackStore;"
        f"store = StackStore.open({str(store.folder)!r});"
        "assert store.patch(store.state.top) and store.history() and store.gc(dry_run=True);"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- patches --


def test_an_added_patch_lies_under_the_digest_of_its_file(
    store: StackStore, patches: list[Patch], tmp_path: Path
) -> None:
    entry = store.add(patches[0])
    patches[0].save(tmp_path / "a.editkit.safetensors")
    assert entry.file_sha256 == sha256(tmp_path / "a.editkit.safetensors")
    assert sha256(object_path(store.folder, entry.file_sha256)) == entry.file_sha256
    assert store.state.entries == ()


def test_adding_twice_changes_nothing(store: StackStore, patches: list[Patch]) -> None:
    entry = store.add(patches[0])
    path = object_path(store.folder, entry.file_sha256)
    before = path.stat()
    assert store.add(patches[0]) == entry
    after = path.stat()
    for field in ("st_mode", "st_ino", "st_nlink", "st_size", "st_mtime_ns", "st_ctime_ns"):
        assert getattr(after, field) == getattr(before, field)  # all but when it was last read


def test_a_dry_run_keeps_no_file_and_still_serves_a_push(
    store: StackStore, patches: list[Patch]
) -> None:
    before = content(store.folder)
    entry = store.add(patches[0], dry_run=True)
    planned = store.update(lambda state: operations.push(state, entry), action="push", dry_run=True)
    assert planned.generation == 1
    assert len(planned.tensors) == 1
    assert content(store.folder) == before
    assert store.state.entries == ()


def test_a_patch_reads_back_as_it_was(store: StackStore, patches: list[Patch]) -> None:
    push(store, patches[0])
    again = StackStore.open(store.folder)
    read = again.patch(again.state.entries[0])
    assert read.header == patches[0].header
    assert all(np.array_equal(read.tensors()[k], v) for k, v in patches[0].tensors().items())


@pytest.mark.parametrize("damage", ["missing", "changed", "cut", "another"])
def test_a_damaged_patch_file_is_named_with_a_remedy(
    store: StackStore, patches: list[Patch], damage: str
) -> None:
    push(store, patches[0])
    path = object_path(store.folder, store.state.entries[0].file_sha256)
    if damage == "missing":
        path.unlink()
    elif damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        patches[1].save(path, force=True)
    again = StackStore.open(store.folder)
    with pytest.raises(StackDamagedError, match="Copy the original patch file") as caught:
        again.patch(again.state.entries[0])
    assert caught.value.facts["path"] == str(path)


def test_adding_a_patch_again_mends_its_damaged_file(
    store: StackStore, patches: list[Patch]
) -> None:
    push(store, patches[0])
    entry = store.state.entries[0]
    object_path(store.folder, entry.file_sha256).write_bytes(b"damaged")
    again = StackStore.open(store.folder)
    again.add(patches[0])
    assert StackStore.open(store.folder).patch(entry).id == patches[0].id


def test_a_patch_whose_file_is_gone_can_be_taken_out(
    store: StackStore, patches: list[Patch]
) -> None:
    for patch in patches[:3]:
        push(store, patch)
    object_path(store.folder, store.state.entry("p0").file_sha256).unlink()
    again = StackStore.open(store.folder)
    remove(again, "p0")
    assert again.doctor().ok


def test_an_entry_without_its_file_is_not_named(store: StackStore, patches: list[Patch]) -> None:
    entry = store.add(patches[0])
    object_path(store.folder, entry.file_sha256).unlink()
    other = StackStore.open(store.folder)
    with pytest.raises(StackDamagedError, match="is missing"):
        other.update(lambda state: operations.push(state, entry), action="push")
    bare = attrs.evolve(entry, file_sha256="")
    with pytest.raises(StackError, match=r"StackStore\.add"):
        other.update(lambda state: operations.push(state, bare), action="push")
    assert StackStore.open(store.folder).generation == 0


def test_a_file_removed_between_adding_and_pushing_is_written_again(
    store: StackStore, patches: list[Patch]
) -> None:
    entry = store.add(patches[0])
    StackStore.open(store.folder).gc()
    assert not object_path(store.folder, entry.file_sha256).exists()
    store.update(lambda state: operations.push(state, entry), action="push")
    assert StackStore.open(store.folder).patch(entry).id == patches[0].id


# -- changes --


def test_each_change_is_a_version(store: StackStore, patches: list[Patch]) -> None:
    push(store, patches[0])
    push(store, patches[1])
    remove(store, "p0")
    assert [document.generation for document in store.history()] == [0, 1, 2, 3]
    assert [document.action for document in store.history()][1::2] == [
        f"push {patches[0].id}",
        "remove",
    ]
    assert StackStore.open(store.folder).document == store.document == store.history()[-1]


def test_a_change_starts_from_what_is_on_disk(store: StackStore, patches: list[Patch]) -> None:
    other = StackStore.open(store.folder)
    push(store, patches[0])
    push(other, patches[1])
    assert [entry.name for entry in other.state.entries] == ["p0", "p1"]


def test_a_change_worked_out_on_an_older_version_is_refused(
    store: StackStore, patches: list[Patch]
) -> None:
    other = StackStore.open(store.folder)
    push(store, patches[0])
    with pytest.raises(StackConflictError, match=r"version 1.*on version 0"):
        other.update(lambda _: StackState(), action="empty", expect=0)
    assert StackStore.open(store.folder).generation == 1


def test_a_change_of_nothing_is_no_version(store: StackStore, patches: list[Patch]) -> None:
    push(store, patches[0])
    before = content(store.folder)
    store.update(lambda state: operations.enable(state, "p0"), action="enable")
    assert content(store.folder) == before


def test_a_change_that_fails_leaves_everything(store: StackStore, patches: list[Patch]) -> None:
    push(store, patches[0])
    before = content(store.folder)
    with pytest.raises(UnknownEntryError):
        remove(store, "nothing")
    assert content(store.folder) == before


def test_a_dry_run_tells_the_outcome_and_writes_nothing(
    store: StackStore, patches: list[Patch]
) -> None:
    push(store, patches[0])
    before = content(store.folder)
    planned = store.update(lambda _: StackState(), action="empty", dry_run=True)
    assert (planned.generation, planned.state, dict(planned.tensors)) == (2, StackState(), {})
    assert content(store.folder) == before
    assert store.generation == 1


def test_the_tensors_are_those_that_numpy_computes(
    store: StackStore, patches: list[Patch], base: Path
) -> None:
    for patch in patches[:3]:
        push(store, patch)
    store.update(lambda state: operations.scale(state, "p2", 0.5), action="scale")
    lower, upper = (patches[i].entries[0].site.parameter for i in (0, 1))
    expected = {
        lower: merged_by_hand(base, lower, [(patches[0], 1.0), (patches[2], 0.5)]),
        upper: merged_by_hand(base, upper, [(patches[1], 1.0)]),
    }
    found = store.document.tensors
    assert {name: result.sha256 for name, result in found.items()} == expected
    assert {name: result.pristine_sha256 for name, result in found.items()} == {
        name: hashlib.sha256(np.ascontiguousarray(stores.weights(base)[name]).tobytes()).hexdigest()
        for name in expected
    }
    assert found[lower].patches == tuple(sorted([patches[0].id, patches[2].id]))


def test_the_order_of_the_patches_does_not_change_the_tensors(
    store: StackStore, patches: list[Patch]
) -> None:
    for patch in patches:
        push(store, patch)
    before = store.document
    after = store.update(lambda state: operations.move(state, "p0", 3), action="move")
    assert after.state != before.state
    assert after.tensors == before.tensors


def test_only_merged_active_patches_count_for_the_tensors(
    store: StackStore, patches: list[Patch]
) -> None:
    for patch in patches[:3]:
        push(store, patch)
    store.update(lambda state: operations.set_mode(state, "p1", "overlay"), action="mode")
    store.update(lambda state: operations.disable(state, "p0"), action="disable")
    (result,) = store.document.tensors.values()
    assert result.patches == (patches[2].id,)
    store.update(lambda state: operations.go_to(state, 0), action="pop")
    assert not store.document.tensors


def test_a_change_of_one_tensor_reads_no_patch_of_another(
    store: StackStore, patches: list[Patch]
) -> None:
    for patch in patches[:3]:
        push(store, patch)
    object_path(store.folder, store.state.entry("p1").file_sha256).unlink()
    again = StackStore.open(store.folder)
    again.update(lambda state: operations.scale(state, "p2", 2.0), action="scale")
    assert again.document.tensors.keys() == store.document.tensors.keys()


def test_a_patch_on_two_tensors_takes_both_along(
    store: StackStore, model: EditableModel, patches: list[Patch]
) -> None:
    both = random_patch(model, layers=(0, 1), seed=9, name="both")
    for patch in (*patches[:2], both):
        push(store, patch)
    with_both = store.document.tensors
    remove(store, "both")
    push(store, both)
    assert store.document.tensors == with_both
    remove(store, "p0")
    assert {result.patches for result in store.document.tensors.values()} == {
        (both.id,),
        tuple(sorted([both.id, patches[1].id])),
    }
    assert store.doctor().ok


@pytest.mark.parametrize("mode", ["merge", "overlay", "disabled"])
def test_a_patch_of_another_base_is_refused_however_it_is_put_on(
    store: StackStore, mode: str
) -> None:
    stranger = random_patch(stores.tiny(seed=7), seed=1)
    before = content(store.folder)
    entry = store.add(stranger)
    if mode == "disabled":
        entry = attrs.evolve(entry, enabled=False)
    elif mode == "overlay":
        entry = attrs.evolve(entry, mode="overlay")
    with pytest.raises(BaseMismatchError, match="was made for"):
        store.update(lambda state: operations.push(state, entry), action="push")
    store.gc()
    assert content(store.folder) == before


def test_a_merge_that_would_overflow_is_refused_and_an_overlay_is_not(
    tmp_path: Path, model: EditableModel
) -> None:
    half = stores.tiny()
    half.model.to(torch.float16).save_pretrained(tmp_path / "half")
    site = half.site(0)
    huge = Patch.from_parts(
        entries=[DenseEntry(site=site, delta=np.full(half.weight(site).shape, 1e6, np.float32))],
        method=random_patch(model).header.method,
        base=base_fingerprint(half, [site.parameter]),
    )
    store = new_store(tmp_path / "stack", tmp_path / "half")
    with pytest.raises(ApplyError, match="overflow"):
        push(store, huge)
    entry = attrs.evolve(store.add(huge), mode="overlay")
    store.update(lambda state: operations.push(state, entry), action="push")
    assert not store.document.tensors


# -- earlier versions --


def test_an_earlier_version_comes_back_as_a_new_one(
    store: StackStore, patches: list[Patch]
) -> None:
    push(store, patches[0])
    two = push(store, patches[1])
    remove(store, "p0")
    restored = store.restore(2)
    assert (restored.generation, restored.action) == (4, "restore 2")
    assert (restored.state, restored.tensors) == (two.state, two.tensors)


def test_a_version_that_is_not_there_is_named(store: StackStore, patches: list[Patch]) -> None:
    push(store, patches[0])
    store.gc(drop_history=True)
    with pytest.raises(StackError, match="from 1 to 1"):
        store.restore(0)
    with pytest.raises(StackError, match="it is at 1"):
        store.restore(2)


def test_a_version_left_by_a_stopped_writer_does_not_count(
    store: StackStore, patches: list[Patch]
) -> None:
    push(store, patches[0])
    left = (store.folder / "history" / "000001.json").read_bytes()
    (store.folder / "history" / "000002.json").write_bytes(left)
    assert [document.generation for document in store.history()] == [0, 1]
    with pytest.raises(StackError, match="it is at 1"):
        store.restore(2)
    push(store, patches[1])
    assert [document.generation for document in store.history()] == [0, 1, 2]


def test_the_document_says_in_plain_json_what_the_stack_is(
    store: StackStore, patches: list[Patch]
) -> None:
    push(store, patches[0])
    fields = stated(store.folder)
    assert (fields["spec"], fields["generation"]) == ("editkit.stack/1", 1)
    assert fields["state"] == {
        "position": 1,
        "entries": [
            {
                "id": patches[0].id,
                "name": "p0",
                "content_digest": patches[0].header.content_digest,
                "file_sha256": store.state.entries[0].file_sha256,
            }
        ],
    }
