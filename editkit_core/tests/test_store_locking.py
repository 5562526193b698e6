"""Writers take turns; readers wait for nobody."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import stores
from stores import content, new_store, push

from editkit_core.errors import StackConflictError, StackLockedError
from editkit_core.patch import Patch
from editkit_core.stack import operations
from editkit_core.stack.state import StackState
from editkit_core.stack.store import StackStore

HOLD = """
import sys, pathlib
from editkit_core.stack.store.writer import writing
with writing(pathlib.Path(sys.argv[1]), 5.0):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def patches() -> list[Patch]:
    return stores.patches_for(stores.tiny(), 8)


@pytest.fixture
def store(tmp_path: Path, patches: list[Patch]) -> StackStore:
    made = new_store(tmp_path / "stack", stores.saved_base(tmp_path / "base"))
    push(made, patches[0])
    return made


@pytest.fixture
def holder(store: StackStore) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the right to write."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("what", ["add", "update", "gc", "write_lock", "restore"])
def test_a_writer_that_waits_too_long_says_so_and_changes_nothing(
    store: StackStore, patches: list[Patch], holder: subprocess.Popen[str], what: str
) -> None:
    store.wait_s = 0.05
    before = content(store.folder)
    calls = {
        "add": lambda: store.add(patches[1]),
        "update": lambda: store.update(lambda _: StackState(), action="empty"),
        "gc": store.gc,
        "write_lock": store.write_lock,
        "restore": lambda: store.restore(0),
    }
    with pytest.raises(StackLockedError, match=r"more than 0\.05 s.*Nothing was changed"):
        calls[what]()
    assert content(store.folder) == before
    assert StackLockedError.exit_code == 5


def test_readers_and_dry_runs_need_no_lock(
    store: StackStore, patches: list[Patch], holder: subprocess.Popen[str]
) -> None:
    reader = StackStore.open(store.folder)
    reader.wait_s = 0.0
    assert reader.patch(reader.state.entries[0]).id == patches[0].id
    assert len(reader.history()) == 2
    assert reader.doctor(full=True).ok
    assert not reader.gc(dry_run=True).files
    entry = reader.add(patches[1], dry_run=True)
    planned = reader.update(
        lambda state: operations.push(state, entry), action="push", dry_run=True
    )
    assert planned.generation == 2


def test_a_killed_writer_frees_its_lock(
    store: StackStore, patches: list[Patch], holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait()
    store.wait_s = 5.0
    assert push(store, patches[1]).generation == 2


def test_no_change_of_many_writers_is_lost(store: StackStore, patches: list[Patch]) -> None:
    def write(patch: Patch) -> None:
        push(StackStore.open(store.folder), patch)

    threads = [threading.Thread(target=write, args=(patch,)) for patch in patches[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = StackStore.open(store.folder)
    assert found.generation == len(patches)
    assert {entry.id for entry in found.state.entries} == {patch.id for patch in patches}
    assert all(row.ok for row in found.doctor().rows)


def test_a_reader_whose_patch_was_taken_out_meanwhile_is_told(
    store: StackStore, patches: list[Patch]
) -> None:
    reader = StackStore.open(store.folder)
    stores.remove(store, "p0")
    store.gc(drop_history=True)
    with pytest.raises(StackConflictError, match=r"taken out of the stack.*meanwhile"):
        reader.patch(reader.state.entries[0])
