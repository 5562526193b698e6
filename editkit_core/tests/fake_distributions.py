"""Distributions that exist only in a temporary folder, written as installers write them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import attrs

METHOD = """
    from editkit_core import MethodInfo, hookimpl

    @hookimpl
    def editkit_method():
        return MethodInfo(name={name!r}, title="A test method", paper="none", api={api}, emits=(),
                          families=("*",), params=dict)
"""


def method_source(name: str, api: int = 1) -> str:
    """Return the source of a module that describes a method and does nothing else."""
    return METHOD.format(name=name, api=api)


@attrs.frozen
class FakeSite:
    """A folder on ``sys.path`` into which distributions are written as installers do."""

    folder: Path

    def install(
        self,
        dist: str,
        *,
        methods: Mapping[str, str] | None = None,
        plugins: Mapping[str, str] | None = None,
        modules: Mapping[str, str] | None = None,
        requires: tuple[str, ...] = (),
        version: str = "1.2",
        metadata: bool = True,
    ) -> None:
        """Write modules and a dist-info folder with entry points (name to module)."""
        info = self.folder / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        if metadata:
            lines = ["Metadata-Version: 2.1", f"Name: {dist}", f"Version: {version}"]
            lines += [f"Requires-Dist: {line}" for line in requires]
            (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        points = []
        for group, entries in (("editkit.methods", methods), ("editkit.plugins", plugins)):
            if entries:
                points += [f"[{group}]", *(f"{name} = {to}" for name, to in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(points) + "\n", encoding="utf-8")
        for name, source in (modules or {}).items():
            text = textwrap.dedent(source)
            (self.folder / f"{name}.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python with this folder on its path."""
        return run_python(*arguments, path=self.folder)

    def editkit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line with this folder on its path."""
        return self.python("-c", "from editkit_core.cli import main; main()", *arguments)


def run_python(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run this Python in a process of its own."""
    env = dict(os.environ)
    if path is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), env.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, check=False
    )
