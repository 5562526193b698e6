"""A stack on a disk that is full, fails, or may not be written to: the old state stays."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stores
from stores import content, new_store, push

from editkit_core.errors import WriteFailedError
from editkit_core.patch import Patch
from editkit_core.stack import operations
from editkit_core.stack.state import EntryState
from editkit_core.stack.store import StackStore


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stores.saved_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def patches() -> list[Patch]:
    return stores.patches_for(stores.tiny(), 4)


@pytest.fixture
def store(tmp_path: Path, base: Path, patches: list[Patch]) -> StackStore:
    made = new_store(tmp_path / "stack", base)
    push(made, patches[0])
    return made


class Disk:
    """A disk with room for so many bytes: writing beyond them gives ENOSPC, part of it done.

    Attributes:
        room: Bytes left.
        written: Bytes written.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 10**9
        self.written = 0
        plain = Path.open

        def opened(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if mode == "xb":
                return io.BufferedWriter(_File(path, self))
            return plain(path, mode, *arguments, **named)

        monkeypatch.setattr(Path, "open", opened)

    def take(self, size: int) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = min(size, self.room)
        self.room -= done
        self.written += done
        return done


class _File(io.FileIO):
    def __init__(self, path: Path, disk: Disk) -> None:
        super().__init__(path, "x")
        self._disk = disk

    def write(self, data: Any) -> int:
        piece = memoryview(data).cast("B")
        return super().write(piece[: self._disk.take(len(piece))])


def moments(size: int, count: int) -> list[int]:
    return sorted({size * i // count for i in range(count)} | {1, size - 1})


def objects(folder: Path) -> list[str]:
    return [name for name in content(folder) if name.startswith("objects/")]


def test_a_disk_that_fills_up_while_a_patch_is_kept_changes_nothing(
    store: StackStore, patches: list[Patch], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(store.folder)
    disk = Disk(monkeypatch)
    store.add(patches[1])
    store.gc()
    for room in moments(disk.written, 20):
        disk.room = room
        with pytest.raises(WriteFailedError, match=r"No space left on device.*has space") as caught:
            store.add(patches[1])
        assert caught.value.facts["errno"] == errno.ENOSPC
        assert content(store.folder) == before


def test_a_disk_that_fills_up_during_a_change_leaves_the_old_state(
    store: StackStore, patches: list[Patch], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = store.add(patches[1])
    before, state = content(store.folder), store.state
    disk = Disk(monkeypatch)
    change = pushing(entry)
    store.update(change, action="push", dry_run=True)
    assert disk.written == 0
    size = 2 * (store.folder / "stack.json").stat().st_size  # the new ones are larger than these
    for room in moments(size, 40):
        disk.room = room
        with pytest.raises(WriteFailedError, match="No space left on device"):
            store.update(change, action="push")
        assert content(store.folder) == before
        assert StackStore.open(store.folder).state == store.state == state
    disk.room = 10**9
    assert store.update(change, action="push").generation == 2
    assert StackStore.open(store.folder).doctor().ok


def pushing(entry: EntryState) -> Callable[[Any], Any]:
    return lambda state: operations.push(state, entry)


@pytest.mark.parametrize("moment", range(4), ids=["patch", "history", "stack.json", "lock"])
def test_a_flush_that_fails_leaves_the_old_state(
    store: StackStore, patches: list[Patch], monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    before = content(store.folder)
    flush, files = os.fsync, iter(range(100))

    def failing(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode) and next(files) == moment:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(WriteFailedError, match="No space left on device"):
        push(store, patches[1])
    assert stores.stated(store.folder)["generation"] == 1
    store.gc()
    assert content(store.folder) == before
    assert push(store, patches[1]).generation == 2


@pytest.mark.parametrize("missing", ["objects", "history"])
def test_a_folder_that_cannot_be_made_leaves_the_old_state(
    store: StackStore, patches: list[Patch], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    entry = store.add(patches[1])
    shutil.rmtree(store.folder / missing)
    before = content(store.folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(WriteFailedError, match=r"Cannot make the folder.*No space left"):
        store.update(pushing(entry), action="push")
    assert content(store.folder) == before


def test_a_full_disk_can_be_cleared_with_gc(
    store: StackStore, patches: list[Patch], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(patches[1])
    disk = Disk(monkeypatch)
    disk.room = 0
    assert store.gc().objects
    assert len(objects(store.folder)) == 1


def test_a_stack_is_made_whole_or_not_at_all(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    new_store(tmp_path / "first", base)
    for room in moments(disk.written, 20):
        disk.room = room
        with pytest.raises(WriteFailedError, match="No space left on device"):
            new_store(tmp_path / "second", base)
        assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_every_file_is_flushed_before_it_is_named_and_its_folder_before_the_next(
    store: StackStore, patches: list[Patch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a loss of power; what was flushed is known by its inode number."""
    events: list[tuple[str, int]] = []
    flush, replace = os.fsync, os.replace

    def flushing(handle: int) -> None:
        events.append(("flush", os.fstat(handle).st_ino))
        flush(handle)

    def replacing(old: Any, new: Any, **more: Any) -> None:
        events.append((Path(new).name, Path(old).stat().st_ino))
        events.append(("in", Path(new).parent.stat().st_ino))
        replace(old, new, **more)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "replace", replacing)
    push(store, patches[1])
    named = [i for i, (what, _) in enumerate(events) if what not in ("flush", "in")]
    names = [events[i][0] for i in named]
    assert names[0].endswith(".editkit.safetensors")
    assert names[1:] == ["000002.json", "stack.json", "editkit.lock"]
    for i, following in zip(named, [*named[1:], len(events)], strict=True):
        assert ("flush", events[i][1]) in events[:i]
        assert ("flush", events[i + 1][1]) in events[i + 2 : following]
