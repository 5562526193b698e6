from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[2]
FACT = ("--prompt", "The capital of {} is", "--subject", "Japan", "--target", "Nairobi")
PYPROJECT = """
[build-system]
requires = ["flit_core>=3.9,<5"]
build-backend = "flit_core.buildapi"
[project]
name = "{dist}"
version = "1.0"
description = "A distribution for a test."
dependencies = ["editkit-core{core}"]
[project.entry-points."editkit.methods"]
{method} = "{module}"
"""

Fresh = Callable[..., "Environment"]  # noqa: F821  # the class in conftest.py
Build = Callable[[dict[str, str]], Path]
Wheels = dict[str, Path]


def method(dist: str, name: str, code: str, *, core: str = ">=0.1,<0.2") -> dict[str, str]:
    module = dist.replace("-", "_")
    text = PYPROJECT.format(dist=dist, method=name, module=module, core=core)
    return {"pyproject.toml": text, f"{module}.py": code}


def states(listing: str) -> dict[str, str]:
    return {row["distribution"]: row["state"] for row in json.loads(listing)["methods"]}


def test_the_core_alone_has_no_methods_and_says_how_to_get_one(
    fresh: Fresh, wheels: Wheels
) -> None:
    environment = fresh(wheels["editkit-core"])
    where = environment.run("python", "-c", "import editkit_core as e; print(e.__file__)")
    assert Path(where.strip()).is_relative_to(environment.folder)
    printed = environment.editkit("methods")
    assert "none installed" in printed
    assert "pip install editkit-rome" in printed
    refused = environment.editkit("edit", "-m", "editkit:demo", *FACT, code=1)
    assert "[EK-G01]" in refused


def test_core_rome_and_demo_from_wheels_edit_a_fact(fresh: Fresh, wheels: Wheels) -> None:
    environment = fresh(*(wheels[f"editkit-{name}"] for name in ("core", "rome", "demo")))
    out = "japan.editkit.safetensors"
    printed = environment.editkit("edit", "-m", "editkit:demo", *FACT, "-o", out, "--json")
    (answer,) = json.loads(printed)["answers"]
    assert answer["before"] == "Tokyo"
    assert answer["after"] == "Nairobi"
    assert (environment.folder / out).stat().st_size < 16_000


def test_a_broken_method_is_listed_and_the_others_work(
    fresh: Fresh, wheels: Wheels, build: Build
) -> None:
    broken = build(method("editkit-broken", "broken", '"""Broken."""\nimport no_such_module\n'))
    environment = fresh(*(wheels[f"editkit-{name}"] for name in ("core", "rome", "demo")), broken)
    listing = environment.editkit("methods", "--json")
    assert states(listing) == {"editkit-broken": "broken", "editkit-rome": "ok"}
    assert "no_such_module" in listing
    refused = environment.editkit("edit", "-m", "editkit:demo", "--method", "broken", *FACT, code=3)
    assert "[EK-G02] editkit-broken 1.0" in refused
    plan = environment.editkit("edit", "-m", "editkit:demo", *FACT, "--dry-run", "--json")
    assert json.loads(plan)["method"] == "rome"


def test_two_distributions_that_claim_one_id_are_refused_by_name(
    fresh: Fresh, wheels: Wheels, build: Build
) -> None:
    claims = [build(method(f"editkit-{x}", "same", f'"""{x}."""\n')) for x in ("first", "second")]
    environment = fresh(wheels["editkit-core"], *claims)
    listing = environment.editkit("methods", "--json")
    assert states(listing) == {"editkit-first": "duplicate", "editkit-second": "duplicate"}
    refused = environment.editkit("edit", "-m", "x", "--method", "same", *FACT, code=3)
    assert "[EK-G03]" in refused
    assert "editkit-first 1.0 and editkit-second 1.0" in refused


def test_a_method_for_another_core_is_refused_without_being_imported(
    fresh: Fresh, wheels: Wheels, build: Build
) -> None:
    old = build(method("editkit-old", "old", '"""Old."""\nraise SystemExit(9)\n', core="<0.1"))
    environment = fresh(wheels["editkit-core"], old)
    assert states(environment.editkit("methods", "--json")) == {"editkit-old": "incompatible"}
    refused = environment.editkit("edit", "-m", "x", "--method", "old", *FACT, code=3)
    assert "[EK-G04] editkit-old 1.0 needs editkit-core<0.1" in refused


def test_the_plugin_of_the_how_to_page_can_be_built_and_changes_an_answer(
    fresh: Fresh, wheels: Wheels, build: Build
) -> None:
    page = (ROOT / "docs" / "how-to" / "plugin.md").read_text(encoding="utf-8")
    files = dict(re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', page, flags=re.DOTALL))
    assert set(files) == {
        "pyproject.toml",
        "src/editkit_nudge/__init__.py",
        "src/editkit_nudge/delta.py",
        "tests/test_nudge.py",
    }
    environment = fresh(wheels["editkit-core"], wheels["editkit-demo"], build(files))
    assert states(environment.editkit("methods", "--json")) == {"editkit-nudge": "ok"}
    (command,) = re.findall(r"\$ editkit (edit .*--method nudge .*)", page)
    arguments = [a.strip('"') for a in re.findall(r'"[^"]*"|\S+', command)]
    (answer,) = json.loads(environment.editkit(*arguments, "--json"))["answers"]
    assert answer["before"] == "Tokyo"
    assert answer["after"] != "Tokyo"
