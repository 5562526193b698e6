"""Wheels of every member, built once, and fresh environments to install them in.

A fresh environment sees the third-party packages of the running one through a folder of links,
which leaves out every editkit distribution: neither code nor entry points of the working tree leak.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterable
from pathlib import Path

import attrs
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = tuple(
    sorted(
        path.parent.relative_to(ROOT).as_posix()
        for pattern in ("editkit_*/pyproject.toml", "plugins/*/pyproject.toml")
        for path in ROOT.glob(pattern)
    )
)
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "build", "dist", "*.egg-info", ".*")
SITE_PACKAGES = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}


@attrs.frozen
class Environment:
    """A virtual environment that holds nothing of editkit but what was installed from wheels."""

    folder: Path

    def install(self, wheels: Iterable[Path]) -> None:
        """Install wheels without looking anywhere else."""
        run(
            *(sys.executable, "-m", "pip", "--python", str(self.folder), "install", "--quiet"),
            *("--no-deps", "--no-index", "--no-compile", *map(str, wheels)),
        )

    def editkit(self, *arguments: str, code: int = 0) -> str:
        """Run the command line and return what it printed, errors after output."""
        return self.run("editkit", *arguments, code=code)

    def run(self, program: str, *arguments: str, code: int = 0) -> str:
        """Run a program of the environment in its folder, where no source is importable."""
        return run(str(self.folder / "bin" / program), *arguments, code=code, cwd=self.folder)


def run(*command: str, code: int = 0, cwd: Path | None = None) -> str:
    """Run a command, check its exit code and return its output."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_", "PYTEST"))}
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=keep | offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "packaging"
    folder.mkdir(exist_ok=True)
    return folder


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder in the first worker that asks for it."""
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def wheels(shared: Path) -> dict[str, Path]:
    """The wheel of every member and of the metapackage, by distribution name."""
    built = once(shared / "wheels", _build_wheels).glob("*.whl")
    return {path.name.split("-")[0].replace("_", "-"): path for path in built}


def _build_wheels(folder: Path) -> None:
    sources = folder / "sources"
    for member in MEMBERS:
        shutil.copytree(ROOT / member, sources / member, ignore=NOT_SOURCE)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"),
        *("--no-build-isolation", "--wheel-dir", str(folder)),
        *(str(sources / member) for member in (*MEMBERS, ".")),
    )
    shutil.rmtree(sources)


@pytest.fixture(scope="session")
def third_party(shared: Path) -> Path:
    """A folder of links to every installed package that is not editkit's."""
    return once(shared / "third-party", _link_packages)


def _link_packages(folder: Path) -> None:
    for site in map(Path, SITE_PACKAGES):
        for item in site.iterdir():
            ours = item.name.startswith(("editkit", "__editable__"))
            if not ours and item.suffix != ".pth" and item.name != "__pycache__":
                (folder / item.name).symlink_to(item)


@pytest.fixture
def fresh(tmp_path: Path, third_party: Path) -> Callable[..., Environment]:
    """Make a fresh environment with some wheels installed."""

    def make(*wheels: Path) -> Environment:
        folder = tmp_path / "environment"
        venv.create(folder, symlinks=True)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "third_party.pth").write_text(f"{third_party}\n", encoding="utf-8")
        environment = Environment(folder)
        environment.install(wheels)
        return environment

    return make


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], Path]:
    """Build the wheel of a small distribution given as file texts by path."""
    from flit_core import buildapi

    def make(files: dict[str, str]) -> Path:
        number = len(list(tmp_path.glob("source-*")))
        source, out = tmp_path / f"source-{number}", tmp_path / f"wheel-{number}"
        for name, text in files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        out.mkdir()
        with monkeypatch.context() as patch:
            patch.chdir(source)
            return out / buildapi.build_wheel(str(out))

    return make
