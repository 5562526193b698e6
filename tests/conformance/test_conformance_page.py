"""The plugin of the how-to page passes its own tests, written as the page has them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "plugin.md"


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The page's files in a folder, with the metadata that an installer writes."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', page, flags=re.DOTALL):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    info = tmp_path / "src" / "editkit_nudge-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: editkit-nudge\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[editkit.methods]\nnudge = editkit_nudge\n")
    return tmp_path


def python(plugin: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(plugin / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=plugin,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_plugin_of_the_page_conforms_on_one_family(plugin: Path) -> None:
    done = python(plugin, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "llama")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^3\d passed, \d+ deselected", done.stdout, flags=re.MULTILINE), done.stdout


def test_a_failing_method_fails_the_page_s_tests_by_name(plugin: Path) -> None:
    delta = plugin / "src" / "editkit_nudge" / "delta.py"
    text = delta.read_text(encoding="utf-8")
    delta.write_text(text.replace("seed=context.seed", "seed=7"), encoding="utf-8")
    names = "come_from-gpt2 or finite-gpt2"
    done = python(plugin, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", names)
    assert "1 failed, 1 passed" in done.stdout
    assert "its patch records seed as 7, and it was 5" in done.stdout


@pytest.mark.slow
def test_the_plugin_of_the_page_conforms_on_every_family(plugin: Path) -> None:
    (without_pytest,) = re.findall(
        r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    done = python(plugin, "-c", without_pytest)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of " in done.stdout
