"""Writers of one stack that are killed: run as a script, in a folder that :func:`prepare` filled.

One process forks the writers, so that hundreds can be killed in a few seconds; it imports no
transformers, which would make forking slow. It looks at the folder with its own eyes (``json``,
``hashlib``) besides through the store, stops with an error at the first thing that does not hold,
and prints what it saw as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stores
import tomlkit

from editkit_core.errors import StackConflictError, UnknownEntryError
from editkit_core.patch import Patch
from editkit_core.stack import operations
from editkit_core.stack.store import StackStore

WRITERS = 3
WHAT = ("remove", "scale", "pop", "move", "gc", "restore")
LONGEST_LIFE_S = 0.015
ROUNDS_UNTIL_REST = 15
ROUNDS_UNTIL_CUT = 60


# -- writers --


def write_forever(folder: Path, patches: list[Patch], seed: int) -> None:
    """Change the stack at random until killed, or left alone."""
    choose, parent = random.Random(seed), os.getppid()
    while os.getppid() == parent:
        store = StackStore.open(folder)
        store.wait_s = 60.0
        with contextlib.suppress(StackConflictError, UnknownEntryError):  # another was faster
            change_once(store, patches, choose)


def change_once(store: StackStore, patches: list[Patch], choose: random.Random) -> None:
    ids = [entry.id for entry in store.state.entries]
    what = choose.choice(
        ["push", "push", "push", "remove", "scale", "pop", "move", "gc", "restore"]
    )
    if what == "push":
        stores.push(store, choose.choice(patches))
    elif what == "gc":
        store.gc()
    elif what == "restore":
        restore_one(store, choose)
    elif what == "pop":
        place = choose.randrange(len(ids) + 1)
        store.update(lambda s: operations.go_to(s, min(place, len(s.entries))), action=what)
    elif ids:
        one = choose.choice(ids)
        changes: dict[str, Callable[[Any], Any]] = {
            "remove": lambda s: operations.remove(s, one),
            "scale": lambda s: operations.scale(s, one, choose.choice([0.5, 1.0, 2.0])),
            "move": lambda s: operations.move(s, one, s.index(one) // 2),
        }
        store.update(changes[what], action=what)


def restore_one(store: StackStore, choose: random.Random) -> None:
    kept = sorted(int(p.stem) for p in (store.folder / "history").glob("??????.json"))
    generation = choose.choice(kept or [0])
    if generation <= store.generation:
        store.restore(generation)


def fork(work: Callable[[], None], log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 0
    try:
        work()
    except BaseException:
        log.write_text(traceback.format_exc())
        code = 3
    finally:
        os._exit(code)


# -- what must hold --


def check_document(folder: Path) -> dict[str, Any]:
    """Check at any moment, while others write: the stack opens and every patch file is sound."""
    store = StackStore.open(folder)
    for entry in store.state.entries:
        path = stores.object_path(folder, entry.file_sha256)
        assert stores.sha256(path) == entry.file_sha256, path
    merged = {entry.id for entry in store.state.active if entry.mode == "merge"}
    assert merged == {key for result in store.document.tensors.values() for key in result.patches}
    return {"generation": store.generation}


def check_at_rest(folder: Path) -> None:
    """Check when no writer lives: what they left goes away, and nothing else does."""
    before = stores.stated(folder)
    store = StackStore.open(folder)
    store.gc()
    assert stores.stated(folder) == before
    lock = tomlkit.parse((folder / "editkit.lock").read_text(encoding="utf-8")).unwrap()
    assert lock["generation"] == before["generation"]
    assert [p["id"] for p in lock["patch"]] == [e["id"] for e in entries(before)]
    assert set(stores.content(folder)) == expected_files(folder, before)
    report = store.doctor()
    assert all(row.ok for row in report.rows), report.rows


def count_leftovers(folder: Path, seen: Counter[str]) -> None:
    document = stores.stated(folder)
    lock = tomlkit.parse((folder / "editkit.lock").read_text(encoding="utf-8")).unwrap()
    seen["lock files behind"] += lock["generation"] != document["generation"]
    for name in set(stores.content(folder)) - expected_files(folder, document):
        kind = "temporary files" if name.endswith(".tmp") else name.split("/")[0]
        seen[f"{kind} of nobody"] += 1


def entries(document: dict[str, Any]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = document["state"].get("entries", [])
    return listed


def expected_files(folder: Path, document: dict[str, Any]) -> set[str]:
    expected = {"stack.json", "editkit.lock"}
    for path in sorted((folder / "history").glob("*.json")):
        if int(path.stem) <= document["generation"]:
            expected.add(f"history/{path.name}")
            former = json.loads(path.read_text(encoding="utf-8"))
            expected |= {object_name(entry) for entry in entries(former)}
    return expected | {object_name(entry) for entry in entries(document)}


def object_name(entry: dict[str, Any]) -> str:
    return stores.object_path(Path(), entry["file_sha256"]).as_posix()


# -- killing at random moments --


def kill_at_random(folder: Path, patches: list[Patch], rounds: int, seed: int) -> dict[str, Any]:
    choose, seen = random.Random(seed), Counter[str]()
    log = folder.parent / "log"
    alive: list[int] = []
    generation = 0

    def kill(count: int) -> None:
        for pid in choose.sample(alive, count):
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            alive.remove(pid)
            assert os.WIFSIGNALED(status), log.read_text()
            seen["killed"] += 1

    try:
        for number in range(1, rounds + 1):
            while len(alive) < WRITERS:
                child = choose.randrange(2**32)
                alive.append(fork(lambda child=child: write_forever(folder, patches, child), log))
            time.sleep(choose.uniform(0.0, LONGEST_LIFE_S))
            resting = number % ROUNDS_UNTIL_REST == 0 or number == rounds
            kill(WRITERS if resting else 1)
            found = check_document(folder)["generation"]
            assert found >= generation, (found, generation)
            generation = found
            if resting:
                count_leftovers(folder, seen)
                check_at_rest(folder)
            if number % ROUNDS_UNTIL_CUT == 0:
                StackStore.open(folder).gc(drop_history=True)
                check_at_rest(folder)
    finally:
        kill(len(alive))
    return {"rounds": rounds, "generation": generation, **seen}


# -- killing at every call --


def kill_at_every_call(folder: Path, patches: list[Patch]) -> dict[str, Any]:
    """Kill a writer at its first call that changes the folder, at its second, and so on."""
    store = StackStore.open(folder)
    stores.push(store, patches[0])
    stores.push(store, patches[1])
    stores.remove(store, "p0")  # so that dropping the history has something to drop
    works: dict[str, Callable[[StackStore], object]] = {
        "push": lambda s: stores.push(s, patches[2]),
        "gc": lambda s: s.gc(drop_history=True),
    }
    seen = Counter[str]()
    for name, work in works.items():
        before = outcome(folder)
        after = outcome_of(folder, work)
        for moment in range(1, 1000):
            copy = folder.parent / "copy"
            shutil.copytree(folder, copy)
            if survives(copy, work, moment):
                assert outcome(copy) == after
                shutil.rmtree(copy)
                break
            assert outcome(copy) in (before, after), (name, moment)
            check_document(copy)
            count_leftovers(copy, seen)
            stores.push(StackStore.open(copy), patches[3])  # the next writer is not in the way
            check_at_rest(copy)
            shutil.rmtree(copy)
            seen[f"moments of {name}"] += 1
    return dict(seen)


def outcome(folder: Path) -> list[Any]:
    """What the stack says, without the time."""
    document = stores.stated(folder)
    return [document["generation"], document["state"], document["tensors"]]


def outcome_of(folder: Path, work: Callable[[StackStore], object]) -> list[Any]:
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    work(StackStore.open(copy))
    found = outcome(copy)
    shutil.rmtree(copy)
    return found


def survives(folder: Path, work: Callable[[StackStore], object], moment: int) -> bool:
    log = folder.parent / "log"

    def doomed() -> None:
        store = StackStore.open(folder)
        die_at(moment, folder)
        work(store)

    _, status = os.waitpid(fork(doomed, log), 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, log.read_text()
    return not os.WIFSIGNALED(status)


def die_at(moment: int, folder: Path) -> None:
    """Kill this process just before its ``moment``-th call that changes or flushes the folder."""
    left = [moment]

    def step() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
        changes = opens or event in ("os.rename", "os.mkdir", "os.remove")
        if changes and str(arguments[0]).startswith(str(folder)):
            step()

    flush = os.fsync

    def watched(handle: Any) -> None:
        step()
        flush(handle)

    os.fsync = watched
    sys.addaudithook(watch)


def prepare(folder: Path) -> None:
    """Make the base, the patches and the empty stack."""
    stores.new_store(folder / "stack", stores.saved_base(folder / "base"))
    for patch in stores.patches_for(stores.tiny(), 8):
        patch.save(folder / f"{patch.header.name}.editkit.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["random", "every"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    patches = [Patch.load(path) for path in sorted(given.folder.glob("p*.editkit.safetensors"))]
    stack = given.folder / "stack"
    gc.freeze()  # so that a collection in a writer copies no memory
    if given.what == "every":
        print(json.dumps(kill_at_every_call(stack, patches)))
    else:
        print(json.dumps(kill_at_random(stack, patches, given.rounds, given.seed)))


if __name__ == "__main__":
    main()
