"""What nothing refers to is found and removed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import stores
from stores import content, new_store, object_path, push, remove

from editkit_core.errors import StackDamagedError
from editkit_core.patch import Patch
from editkit_core.stack.store import StackStore


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stores.saved_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def patches() -> list[Patch]:
    return stores.patches_for(stores.tiny(), 3)


@pytest.fixture
def store(tmp_path: Path, base: Path, patches: list[Patch]) -> StackStore:
    made = new_store(tmp_path / "stack", base)
    push(made, patches[0])
    push(made, patches[1])
    return made


def name_of(patch: Patch, store: StackStore) -> str:
    digest = store.add(patch, dry_run=True).file_sha256
    return object_path(Path(), digest).as_posix()


def test_a_sound_stack_has_no_garbage(store: StackStore) -> None:
    before = content(store.folder)
    assert store.gc().files == ()
    assert content(store.folder) == before


def test_what_stopped_writers_left_is_removed(store: StackStore, patches: list[Patch]) -> None:
    before = content(store.folder)
    lost = store.add(patches[2]).file_sha256
    for name in (".stack.json.0a.tmp", "history/.000003.json.0b.tmp", f"objects/{lost[:2]}/.x.tmp"):
        (store.folder / name).write_bytes(b"half")
    (store.folder / "history" / "000003.json").write_bytes(before["stack.json"])
    report = store.gc()
    assert len(report.temporary) == 3
    assert report.history == ("history/000003.json",)
    assert report.objects == (name_of(patches[2], store),)
    assert content(store.folder) == before


def test_a_dry_run_lists_the_same_and_removes_nothing(
    store: StackStore, patches: list[Patch]
) -> None:
    store.add(patches[2])
    before = content(store.folder)
    listed = store.gc(dry_run=True)
    assert content(store.folder) == before
    done = store.gc()
    assert (listed.files, listed.nbytes) == (done.files, done.nbytes)
    assert (listed.dry_run, done.dry_run) == (True, False)


def test_the_size_is_that_of_the_files(store: StackStore, patches: list[Patch]) -> None:
    lost = object_path(store.folder, store.add(patches[2]).file_sha256)
    size = lost.stat().st_size
    (store.folder / ".stack.json.0a.tmp").write_bytes(b"half")
    assert store.gc(dry_run=True).nbytes == size + 4


def test_a_patch_that_an_earlier_version_has_is_kept(
    store: StackStore, patches: list[Patch]
) -> None:
    remove(store, "p0")
    assert store.gc().files == ()
    assert store.restore(2).state.position == 2


def test_dropping_the_history_drops_what_only_it_has(
    store: StackStore, patches: list[Patch]
) -> None:
    remove(store, "p0")
    report = store.gc(drop_history=True)
    assert report.history == tuple(f"history/{i:06d}.json" for i in range(3))
    assert report.objects == (name_of(patches[0], store),)
    assert [document.generation for document in store.history()] == [3]
    assert all(row.ok for row in store.doctor().rows)


def test_files_of_other_people_are_left_alone(store: StackStore) -> None:
    mine = ["notes.txt", "history/notes.json", "objects/notes", "objects/ab/readme.txt"]
    for name in mine:
        (store.folder / name).parent.mkdir(exist_ok=True)
        (store.folder / name).write_text("mine")
    assert store.gc(drop_history=True).objects == ()
    assert all((store.folder / name).read_text() == "mine" for name in mine)


def test_an_unreadable_version_stops_the_removal_of_patches(
    store: StackStore, patches: list[Patch]
) -> None:
    remove(store, "p0")
    (store.folder / "history" / "000001.json").write_text("damaged")
    before = content(store.folder)
    with pytest.raises(StackDamagedError, match=r"000001\.json"):
        store.gc()
    assert content(store.folder) == before
    store.gc(drop_history=True)
    assert all(row.ok for row in store.doctor().rows)
