"""The doctor finds every damage there is a name for, and mends the lock file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import stores
import tomlkit
from stores import content, new_store, object_path, push

from editkit_core.errors import StackDamagedError
from editkit_core.patch import Patch
from editkit_core.stack import operations
from editkit_core.stack.store import StackStore, TensorResult
from editkit_core.stack.store.document import decode, encode


@pytest.fixture(scope="module")
def patches() -> list[Patch]:
    return stores.patches_for(stores.tiny(), 3)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, patches: list[Patch]) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    store = new_store(folder / "stack", stores.saved_base(folder / "base"))
    push(store, patches[0])
    push(store, patches[1])
    return folder


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> StackStore:
    """A copy of a sound stack whose base may be damaged too."""
    shutil.copytree(sound / "base", tmp_path / "base")
    made = new_store(tmp_path / "stack", tmp_path / "base")
    for entry in StackStore.open(sound / "stack").state.entries:
        push(made, StackStore.open(sound / "stack").patch(entry))
    return StackStore.open(tmp_path / "stack")


def failed(store: StackStore, *, full: bool = False) -> dict[str, str]:
    return {row.check: row.detail for row in store.doctor(full=full).rows if not row.ok}


def rewrite(store: StackStore, change: Callable[[dict[str, TensorResult]], None]) -> None:
    """Write a document with a right checksum and wrong results, history included."""
    tensors = dict(store.document.tensors)
    change(tensors)
    path = store.folder / "stack.json"
    text = encode(attrs.evolve(decode(path.read_bytes(), path), tensors=tensors))
    path.write_bytes(text)


@pytest.mark.parametrize("full", [False, True])
def test_a_sound_stack_passes_and_nothing_is_changed(store: StackStore, full: bool) -> None:
    before = content(store.folder)
    report = store.doctor(full=full)
    assert report.ok
    assert report.generation == 2
    assert [row.check for row in report.rows if row.check.startswith("tensor ")] == [
        f"tensor {name}" for name in sorted(store.document.tensors)
    ]
    assert content(store.folder) == before


def test_an_empty_stack_passes(tmp_path: Path, sound: Path) -> None:
    assert new_store(tmp_path / "stack", sound / "base").doctor(full=True).ok


def test_overlays_and_disabled_patches_pass(store: StackStore) -> None:
    store.update(lambda state: operations.set_mode(state, "p0", "overlay"), action="mode")
    store.update(lambda state: operations.disable(state, "p1"), action="disable")
    assert store.doctor().ok


def test_a_missing_and_a_changed_patch_file_are_both_named(store: StackStore) -> None:
    lower, upper = (object_path(store.folder, e.file_sha256) for e in store.state.entries)
    lower.unlink()
    upper.write_bytes(upper.read_bytes()[:-1] + b"x")
    found = failed(store)
    ids = [entry.id for entry in store.state.entries]
    assert "is missing" in found[f"patch {ids[0]}"]
    assert "was changed" in found[f"patch {ids[1]}"]
    assert all(key in found["tensors"] for key in ids)


def test_a_wrong_tensor_digest_is_found_by_computing_it_anew(store: StackStore) -> None:
    name, right = sorted(store.document.tensors.items())[0]

    def change(tensors: dict[str, TensorResult]) -> None:
        tensors[name] = TensorResult(
            pristine_sha256=right.pristine_sha256, sha256="0" * 64, patches=right.patches
        )

    rewrite(store, change)
    found = failed(store)
    assert list(found) == [f"tensor {name}"]
    assert "0" * 64 in found[f"tensor {name}"]
    assert right.sha256 in found[f"tensor {name}"]


def test_a_tensor_too_few_and_one_too_many_are_found(store: StackStore) -> None:
    name = min(store.document.tensors)

    def change(tensors: dict[str, TensorResult]) -> None:
        tensors["invented"] = tensors.pop(name)

    rewrite(store, change)
    assert sorted(failed(store)) == ["tensor invented", f"tensor {name}"]


def test_a_changed_weight_of_the_base_is_found_where_a_patch_touches_it(store: StackStore) -> None:
    name = min(store.document.tensors)
    shard, slot = store.source().locate(name)
    with shard.path.open("r+b") as file:
        file.seek(shard.data_start + slot.start)
        file.write(b"\x01\x02")
    found = failed(StackStore.open(store.folder))
    assert name in found["tensors"]
    assert "was made for" in found["tensors"]


def test_a_changed_weight_elsewhere_is_found_by_the_full_check_only(store: StackStore) -> None:
    path = store.source().folder / "model.safetensors"
    untouched = next(
        slot
        for slot in store.source().shard(path.name).slots.values()
        if slot.name not in store.document.tensors
    )
    with path.open("r+b") as file:
        file.seek(store.source().shard(path.name).data_start + untouched.start)
        file.write(b"\x01\x02")
    assert not failed(store)
    assert "was made on" in failed(store, full=True)["base model.safetensors"]


def test_a_base_that_went_away_is_named(store: StackStore) -> None:
    base = store.source().folder
    (base / "model.safetensors").unlink()
    assert "lacks model.safetensors" in failed(StackStore.open(store.folder))["base"]
    base.rename(base.parent / "moved")
    assert "no model folder" in failed(StackStore.open(store.folder))["base"]


def test_leftovers_and_a_damaged_version_are_warnings(
    store: StackStore, patches: list[Patch]
) -> None:
    store.add(patches[2])
    report = store.doctor()
    assert report.ok
    assert [row.check for row in report.warnings] == ["left behind"]
    (store.folder / "history" / "000001.json").write_text("damaged")
    report = store.doctor()
    assert report.ok
    assert [row.check for row in report.warnings] == ["history"]
    assert "000001.json" in report.warnings[0].detail


def test_a_damaged_document_is_an_error(store: StackStore) -> None:
    path = store.folder / "stack.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"generation": 1}))
    with pytest.raises(StackDamagedError, match="checksum"):
        store.doctor()


# -- the lock file --


@pytest.fixture
def behind(store: StackStore) -> StackStore:
    """A stack whose writer was stopped between stack.json and editkit.lock."""
    old = (store.folder / "editkit.lock").read_bytes()
    store.update(lambda state: operations.disable(state, "p1"), action="disable")
    (store.folder / "editkit.lock").write_bytes(old)
    return StackStore.open(store.folder)


def generation_of_lock(store: StackStore) -> object:
    text = (store.folder / "editkit.lock").read_text()
    return tomlkit.parse(text).unwrap()["generation"]


def test_a_lock_file_that_was_left_behind_is_found(behind: StackStore) -> None:
    report = behind.doctor()
    assert not report.ok
    assert "is of generation 2, the stack is at 3" in failed(behind)["editkit.lock"]
    assert generation_of_lock(behind) == 2


def test_the_doctor_mends_the_lock_file(behind: StackStore) -> None:
    assert behind.doctor(repair=True).ok
    assert generation_of_lock(behind) == 3
    assert not behind.write_lock()


@pytest.mark.parametrize("change", ["change", "nothing", "gc"])
def test_the_next_writer_mends_the_lock_file(behind: StackStore, change: str) -> None:
    if change == "gc":
        behind.gc()
    else:
        turn = operations.enable if change == "change" else operations.disable
        behind.update(lambda state: turn(state, "p1"), action=change)
    assert generation_of_lock(behind) == behind.generation
    assert behind.doctor().ok


@pytest.mark.parametrize("damage", ["missing", "changed", "no TOML"])
def test_a_damaged_lock_file_is_found_and_mended(store: StackStore, damage: str) -> None:
    path = store.folder / "editkit.lock"
    right = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"{" if damage == "no TOML" else right.replace(b"1.0", b"2.0"))
    assert list(failed(store)) == ["editkit.lock"]
    assert store.write_lock()
    assert path.read_bytes() == right
