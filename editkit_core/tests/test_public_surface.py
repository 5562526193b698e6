from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
from fake_distributions import run_python

import editkit_core
from editkit_core import hookspecs

GOLDEN = Path(__file__).parent / "golden" / "hook_signatures.txt"
HEAVY = ("torch", "transformers", "numpy", "rich", "matplotlib", "huggingface_hub", "safetensors")


def test_all_is_sorted_and_without_doubles() -> None:
    assert editkit_core.__all__ == sorted(set(editkit_core.__all__))


@pytest.mark.parametrize("name", editkit_core.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(editkit_core, name) is not None
    assert name in dir(editkit_core)


def test_every_module_with_an_all_keeps_it_sorted_and_true() -> None:
    for found in pkgutil.walk_packages(editkit_core.__path__, "editkit_core."):
        module = importlib.import_module(found.name)
        names = list(getattr(module, "__all__", ()))
        assert names == sorted(names), found.name
        assert [name for name in names if not hasattr(module, name)] == [], found.name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"Edtior"):
        editkit_core.Edtior  # noqa: B018  # that is the test


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(editkit_core.__path__[0], "py.typed").is_file()


@pytest.mark.parametrize(
    "module",
    [
        "editkit_core",
        "editkit_core.cli",
        "editkit_core.cli.commands.datasets",
        "editkit_core.cli.commands.edit",
        "editkit_core.cli.commands.export",
        "editkit_core.cli.commands.generate",
        "editkit_core.cli.commands.import_",
        "editkit_core.cli.commands.materialize",
        "editkit_core.cli.commands.methods",
        "editkit_core.cli.commands.models",
        "editkit_core.cli.commands.patch",
        "editkit_core.cli.commands.stats",
        "editkit_core.cli.commands.trace",
        "editkit_core.cli.commands.train",
        "editkit_core.data",
        "editkit_core.data.builtin",
        "editkit_core.data.requests",
        "editkit_core.efficiency",
        "editkit_core.errors",
        "editkit_core.hookspecs",
        "editkit_core.host",
        "editkit_core.interop",
        "editkit_core.metrics.report",
        "editkit_core.models",
        "editkit_core.params",
        "editkit_core.patch",
        "editkit_core.session",
        "editkit_core.training",
        "editkit_core.training.data",
        "editkit_core.training.learner",
        "editkit_core.training.options",
        "editkit_core.types",
    ],
)
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = run_python("-c", code)
    assert done.stdout == "[]\n", done.stderr


def test_importing_the_package_imports_no_yaml_and_no_cattrs() -> None:
    code = "import sys, editkit_core; print([m for m in ('yaml', 'cattrs') if m in sys.modules])"
    assert run_python("-c", code).stdout == "[]\n"


def hook_signatures() -> str:
    lines = [f"api {hookspecs.API_VERSION}, supported {sorted(hookspecs.SUPPORTED_APIS)}"]
    for name, function in sorted(vars(hookspecs).items()):
        options = getattr(function, "editkit_spec", None)
        if options is not None:
            first = " firstresult" if options["firstresult"] else ""
            lines.append(f"{name}{inspect.signature(function)}{first}")
    return "\n".join(lines) + "\n"


def test_hook_signatures_are_as_published() -> None:
    assert hook_signatures() == GOLDEN.read_text(encoding="utf-8"), (
        "A hook changed, and plugins depend on it. A new argument is free; a removed or renamed "
        "one needs warn_on_impl_args for a minor release, a changed meaning a new API_VERSION. If "
        "the change is wanted, write the new signatures and a changelog fragment:\n"
        "    python editkit_core/tests/test_public_surface.py"
    )


if __name__ == "__main__":
    GOLDEN.write_text(hook_signatures(), encoding="utf-8")
