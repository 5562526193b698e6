from __future__ import annotations

import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
import tomlkit
from packaging.requirements import Requirement
from packaging.version import Version

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(
    sorted(
        path.parent.name.replace("_", "-")
        for pattern in ("editkit_*/pyproject.toml", "plugins/*/pyproject.toml")
        for path in ROOT.glob(pattern)
    )
)


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode("utf-8"))


def requirements(wheel: Path) -> list[Requirement]:
    return [Requirement(line) for line in metadata(wheel).get_all("Requires-Dist", [])]


def test_there_is_a_wheel_of_every_member(wheels: dict[str, Path]) -> None:
    assert set(wheels) == {"editkit", *PACKAGES}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_says_that_it_is_typed(wheels: dict[str, Path], name: str) -> None:
    assert f"{name.replace('-', '_')}/py.typed" in names(wheels[name])


@pytest.mark.parametrize("name", ["editkit", *PACKAGES])
def test_a_wheel_holds_its_licence(wheels: dict[str, Path], name: str) -> None:
    licences = [n for n in names(wheels[name]) if n.endswith("/LICENSE")]
    with zipfile.ZipFile(wheels[name]) as archive:
        texts = [archive.read(licence) for licence in licences]
    assert texts == [(ROOT / "LICENSE").read_bytes()]
    assert "MIT" in (metadata(wheels[name]).get("License-Expression") or "")


@pytest.mark.parametrize("name", ["editkit", *PACKAGES])
def test_a_wheel_holds_its_package_and_nothing_else(wheels: dict[str, Path], name: str) -> None:
    package = name.replace("-", "_")
    stray = [n for n in names(wheels[name]) if not n.startswith((f"{package}/", f"{package}-0."))]
    assert stray == []
    assert not [n for n in names(wheels[name]) if "test_" in n or "/tests/" in n or ".pyc" in n]


def test_the_metapackage_holds_no_code(wheels: dict[str, Path]) -> None:
    assert not [n for n in names(wheels["editkit"]) if n.endswith(".py")]


def test_the_rome_wheel_holds_its_presets(wheels: dict[str, Path]) -> None:
    assert "editkit_rome/presets.yaml" in names(wheels["editkit-rome"])


def test_the_demo_wheel_holds_the_model_and_its_facts(wheels: dict[str, Path]) -> None:
    inside = names(wheels["editkit-demo"])
    files = ("config.json", "model.safetensors", "tokenizer.json", "README.md")
    for folder in ("model", "model_llama", "model_t5"):
        assert [f for f in files if f"editkit_demo/{folder}/{f}" not in inside] == []
    assert "editkit_demo/data/facts.csv" in inside
    assert "editkit_demo/data/question_phrasings.csv" in inside


def test_the_demo_wheel_stays_small(wheels: dict[str, Path]) -> None:
    assert wheels["editkit-demo"].stat().st_size < 36_000_000  # three models of at most 12


def test_the_members_have_one_version(wheels: dict[str, Path]) -> None:
    assert len({metadata(wheel)["Version"] for wheel in wheels.values()}) == 1


@pytest.mark.parametrize("name", PACKAGES)
def test_a_packages_version_is_its_distributions(wheels: dict[str, Path], name: str) -> None:
    with zipfile.ZipFile(wheels[name]) as archive:
        source = archive.read(f"{name.replace('-', '_')}/__init__.py").decode("utf-8")
    assert f'__version__ = "{metadata(wheels[name])["Version"]}"' in source


def test_members_require_each_other_in_one_minor_range(wheels: dict[str, Path]) -> None:
    checked = 0
    for wheel in wheels.values():
        for requirement in requirements(wheel):
            if requirement.name not in wheels:
                continue
            version = Version(metadata(wheels[requirement.name])["Version"])
            assert requirement.specifier.contains(version), (wheel.name, str(requirement))
            later = Version(f"{version.major}.{version.minor + 1}")
            assert not requirement.specifier.contains(later), (wheel.name, str(requirement))
            checked += 1
    assert checked >= 5


def test_every_dependency_is_pinned_within_its_range(wheels: dict[str, Path]) -> None:
    lines = (ROOT / "constraints" / "ci.txt").read_text(encoding="utf-8").split()
    pins = {Requirement(line).name.replace("_", "-").lower(): Requirement(line) for line in lines}
    for wheel in wheels.values():
        for requirement in requirements(wheel):
            name = requirement.name.replace("_", "-").lower()
            if name in wheels:
                continue
            assert name in pins, f"{wheel.name} needs {requirement}: pin it in constraints/ci.txt"
            (pin,) = pins[name].specifier
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), (wheel.name, str(requirement))


def test_the_licences_of_the_members_are_one_text() -> None:
    paths = [*ROOT.glob("*/LICENSE"), *ROOT.glob("plugins/*/LICENSE")]
    assert len(paths) >= 3
    assert {path.read_bytes() for path in paths} == {(ROOT / "LICENSE").read_bytes()}


def test_every_member_is_known_to_the_tools() -> None:
    folders = [path.parent for path in ROOT.glob("*/pyproject.toml")]
    folders += [path.parent for path in ROOT.glob("plugins/*/pyproject.toml")]
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contract = tomlkit.parse(settings)["tool"]["importlinter"]["root_packages"]  # type: ignore[index]  # tomlkit's own types
    install = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    check = (ROOT / "scripts" / "check").read_text(encoding="utf-8")
    assert len(folders) >= 11
    assert "for member in editkit_* plugins/editkit_*; do" in check
    for folder in folders:
        place = folder.relative_to(ROOT).as_posix()
        assert f"-e ./{place}" in install, place
        assert f'"{place}/tests"' in settings, place
        assert folder.name in contract, place
