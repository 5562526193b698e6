"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from editkit_core.atomic import new_folder, write_file
from editkit_core.errors import OutputExistsError, WriteFailedError

FAILURES = [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError("x")]


def interrupted(error: BaseException) -> Iterator[bytes]:
    yield b"half"
    raise error


def half_a_folder(path: Path, error: BaseException) -> None:
    with new_folder(path, replace=True) as folder:
        (folder / "new").write_text("half")
        raise error


def while_another_writes(path: Path) -> None:
    with new_folder(path) as folder:
        (folder / "new").write_text("new")
        path.mkdir()
        (path / "theirs").write_text("theirs")


@pytest.mark.parametrize("error", FAILURES)
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, error: BaseException
) -> None:
    (tmp_path / "a").write_text("old")
    expected = WriteFailedError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_file(tmp_path / "a", interrupted(error), force=True)
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("a", "old")]


def test_a_full_disk_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(WriteFailedError, match=r"No space left on device.*has space") as caught:
        write_file(tmp_path / "a", interrupted(FAILURES[0]))
    assert caught.value.facts["errno"] == errno.ENOSPC


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_at_the_last_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(WriteFailedError, match="Input/output"):
        write_file(tmp_path / "a", [b"new"])
    assert not list(tmp_path.iterdir())


def test_a_limit_of_the_system_gives_the_same_error_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path;"
        "from editkit_core.errors import WriteFailedError;"
        "from editkit_core.atomic import write_file;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"try: write_file(Path({str(tmp_path / 'a')!r}), [b'x' * 100_000])\n"
        "except WriteFailedError as error: sys.exit(error.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "EK-F02"
    assert not list(tmp_path.iterdir())


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_file(tmp_path / "a", [b"x"])
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="is a folder"):
        write_file(tmp_path, [b"x"], force=True)


@pytest.mark.parametrize("error", FAILURES)
def test_a_failed_folder_keeps_the_old_one_and_leaves_nothing(
    tmp_path: Path, error: BaseException
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    expected = WriteFailedError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        half_a_folder(tmp_path / "out", error)
    assert [str(f.relative_to(tmp_path)) for f in sorted(tmp_path.rglob("*"))] == ["out", "out/old"]


def test_a_folder_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError):
        while_another_writes(tmp_path / "out")
    assert [f.name for f in tmp_path.rglob("*")] == ["out", "theirs"]
