"""The commands of the tutorial and the Python of its how-to page, run as they stand."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path

import pytest

from editkit_core.cli import main

DOCS = Path(__file__).resolve().parents[2] / "docs"


def run(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(line)[1:])
    printed = capsys.readouterr()
    assert stopped.value.code in (None, 0), printed.err
    return printed.out


def test_the_tutorial_edits_shows_and_takes_off_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import editkit_demo

    monkeypatch.chdir(tmp_path)
    page = (DOCS / "tutorial" / "first-edit.md").read_text(encoding="utf-8")
    said = [run(line, capsys) for line in re.findall(r"^\$ (editkit .*)$", page, re.MULTILINE)]
    answers = [
        "Nairobi" if "Nairobi" in text else "Tokyo" if "Tokyo" in text else "" for text in said
    ]
    before, edit, show, verify, patched, other, _apply, merged, _revert, reverted = answers
    assert (before, edit, show) == ("Tokyo", "Nairobi", "Nairobi")
    assert (verify, patched, other) == ("", "Nairobi", "")
    assert (merged, reverted) == ("Nairobi", "Tokyo")
    files = (
        (tmp_path / "edited" / "model.safetensors"),
        editkit_demo.model_path() / "model.safetensors",
    )
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 1


def test_the_python_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "how-to" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {"__name__": "python_page"}
    for block in blocks:
        exec(compile(block, "python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.count("Nairobi") == 2
    assert "reliability" in printed
    assert "EK-M03" in printed
