from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import attrs
import click
import pytest
from editkit_docs.__main__ import PAGES
from editkit_docs.commands import walk
from editkit_docs.docstrings import first_line, items, section
from editkit_docs.hooks import specifications
from editkit_docs.methods import methods, parameter_classes
from editkit_docs.tables import error_classes

from editkit_core.errors import EditkitError
from editkit_core.patch.kinds import BUILTIN_KINDS
from editkit_core.types import EditContext, EditRequest, MethodInfo, Probe, Site

DOCS = Path(__file__).resolve().parents[2] / "docs"
SECTIONS = ["What happened", "Why", "What to do", "Example"]
COMMANDS = {context.command_path: command for context, command in walk()}
PARAMETERS = {
    kind.__name__: kind for info, _ in methods() for kind in parameter_classes(info.params())
}


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    assert read(name) == PAGES[name](), f"docs/{name} is stale. Run scripts/docs."


@pytest.mark.parametrize("name", specifications())
def test_every_hook_has_a_page_section_and_documents_its_arguments(name: str) -> None:
    hook = specifications()[name]
    assert f"\n## {name}\n" in read("reference/hooks.md")
    assert first_line(hook).endswith(".")
    assert list(items(hook, "Args")) == list(inspect.signature(hook).parameters)
    if inspect.signature(hook).return_annotation != "None":
        assert section(hook, "Returns")


def test_the_hooks_on_the_page_are_all_the_hooks_of_the_module() -> None:
    from editkit_core import hookspecs

    assert set(specifications()) == {n for n in vars(hookspecs) if n.startswith("editkit_")}


@pytest.mark.parametrize("value", [EditContext, EditRequest, MethodInfo, Probe, Site])
def test_every_field_of_a_value_that_hooks_see_is_documented(value: type) -> None:
    assert list(items(value, "Attributes")) == [field.name for field in attrs.fields(value)]


def test_there_is_a_method_whose_parameters_are_checked() -> None:
    assert "RomeParams" in PARAMETERS


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_of_a_method_is_documented(name: str) -> None:
    fields = [field.name for field in attrs.fields(PARAMETERS[name])]
    documented = items(PARAMETERS[name], "Attributes")
    assert sorted(documented) == sorted(fields)
    page = read("reference/parameters.md")
    assert [field for field in fields if f"| `{field}` |" not in page] == []


@pytest.mark.parametrize("name", BUILTIN_KINDS)
def test_every_patch_kind_is_documented_with_its_tensors(name: str) -> None:
    kind = BUILTIN_KINDS[name]
    assert f"\n### {name}\n" in read("reference/kinds.md")
    assert first_line(kind).endswith(".")
    documented = set(items(kind, "Attributes"))
    assert {field.name for field in attrs.fields(kind)} == documented  # type: ignore[arg-type]  # a protocol, in fact attrs


def test_every_error_class_has_a_code_of_its_own() -> None:
    found = [EditkitError]
    for kind in found:
        found += kind.__subclasses__()
    ours = [kind for kind in found if kind.__module__ == "editkit_core.errors"]
    assert sorted(kind.code for kind in ours) == sorted(error_classes())


@pytest.mark.parametrize("code", error_classes())
def test_every_error_code_has_a_page_that_says_what_to_do(code: str) -> None:
    page = read(f"errors/{code}.md")
    assert page.startswith(f"# {code}: {error_classes()[code].__name__}\n")
    assert re.findall(r"^## (.+)$", page, flags=re.MULTILINE) == SECTIONS
    bodies = re.split(r"^#.*$", page, flags=re.MULTILINE)[2:]
    assert all(len(body.split()) > 3 for body in bodies)


@pytest.mark.parametrize("code", error_classes())
def test_an_error_pages_example_shows_its_own_code(code: str) -> None:
    shown = set(re.findall(r"\[(EK-\w+)\] ", read(f"errors/{code}.md").partition("## Example")[2]))
    assert shown <= {code}


def test_no_page_is_left_of_an_error_that_is_gone() -> None:
    assert {path.stem for path in (DOCS / "errors").glob("EK-*.md")} == set(error_classes())


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_says_what_it_does(path: str) -> None:
    command = COMMANDS[path]
    assert command.help
    silent = [
        option.name
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert silent == [], f"{path}: options without help"
    assert path == "editkit" or f" {path}\n" in read("reference/commands.md")


def console_lines() -> list[tuple[str, str]]:
    pages = [path for path in DOCS.rglob("*.md") if path.parent.name != "reference"]
    pages.append(DOCS.parent / "README.md")
    return [
        (page.name, line.removeprefix("$ "))
        for page in sorted(pages)
        for block in re.findall(
            r"```(?:console|text)\n(.*?)```", page.read_text("utf-8"), re.DOTALL
        )
        for line in block.splitlines()
        if line.startswith("$ editkit ")
    ]


@pytest.mark.parametrize(("page", "line"), console_lines())
def test_every_command_in_the_docs_is_one_the_program_understands(
    page: str, line: str, parse: Callable[[str], None]
) -> None:
    parse(line)


@pytest.fixture
def parse() -> Callable[[str], None]:
    import shlex

    def check(line: str) -> None:
        words = shlex.split(line)
        path = words.pop(0)
        while words and f"{path} {words[0]}" in COMMANDS:
            path += f" {words.pop(0)}"
        command = COMMANDS[path]
        group = isinstance(command, click.Group) and not command.invoke_without_command
        assert not group or words in ([], ["--help"]), line
        command.make_context(path, words, resilient_parsing=False)

    return check


def test_there_are_commands_in_the_docs_to_check() -> None:
    assert len(console_lines()) > 30
