"""The parameters and presets of the methods in this repository, from their attrs classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs

from editkit_core.host import Host
from editkit_core.params import load_presets, unstructure
from editkit_core.types import MethodInfo
from editkit_docs.docstrings import body, items
from editkit_docs.markdown import cell, code, page, table
from editkit_docs.members import member_names

INTRO = """Set a parameter with `--set NAME=VALUE`, or several with `--params FILE`, over those of
the preset that fits the model. `editkit edit --dry-run` shows what would be used. How to choose
them: [Choose and tune parameters](../how-to/tune.md)."""


def methods() -> tuple[tuple[MethodInfo, str], ...]:
    """Return every method of this repository with its distribution.

    Raises:
        PluginError: One of them cannot be used.
    """
    host = Host()
    ours = [found for found in host.methods if found.dist in member_names()]
    return tuple((host.load_method(found.name)[1], found.dist) for found in ours)


def parameter_classes(kind: type[Any]) -> Iterator[type[Any]]:
    """Yield a parameter class and the attrs classes of its fields, nested ones too."""
    yield kind
    for field in attrs.fields(attrs.resolve_types(kind)):
        for inner in (field.type, *getattr(field.type, "__args__", ())):
            if isinstance(inner, type) and attrs.has(inner):
                yield from parameter_classes(inner)


def parameters_page() -> str:
    """Return the page."""
    blocks = [block for info, dist in methods() for block in _method(info, dist)]
    return page("Methods and their parameters", INTRO, *blocks)


def _method(info: MethodInfo, dist: str) -> Iterator[str]:
    yield f"## {info.name}"
    yield f"{info.title} ({dist}). {info.paper}"
    yield _facts(info)
    for kind in parameter_classes(info.params()):
        yield f"### {kind.__name__}"
        yield body(kind)
        yield table(("parameter", "default", "meaning"), _rows(kind))
    presets = load_presets(info)
    if presets:
        yield f"### Presets of {info.name}"
        yield table(("preset", "for", "source", "values"), [_preset(preset) for preset in presets])


def _facts(info: MethodInfo) -> str:
    families = "any decoder with a known family" if "*" in info.families else info.families
    rows = [
        ("emits", ", ".join(map(code, info.emits))),
        ("families", families if isinstance(families, str) else ", ".join(map(code, families))),
        ("needs", ", ".join(need.replace("_", " ") for need in info.needs) or "nothing"),
        ("several facts", "solved jointly" if info.batch else "one after the other"),
    ]
    return table(("", ""), rows)


def _rows(kind: type[Any]) -> Iterator[tuple[str, str, str]]:
    documented = items(kind, "Attributes")
    for field in attrs.fields(kind):
        yield code(field.name), _default(field), cell(documented.get(field.name, ""))


def _default(field: attrs.Attribute[Any]) -> str:
    if field.default is attrs.NOTHING:
        return "from the preset"
    value: Any = field.default
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]  # a class at run time
        value = value.factory()
    if attrs.has(type(value)):
        value = unstructure(value)
    return code(_written(value))


def _written(value: Any) -> str:  # Any: JSON values
    """Return a value as ``--set`` takes it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _preset(preset: Any) -> tuple[str, str, str, str]:  # Any: a preset, see editkit_core.params
    match = {name: value for name, value in attrs.asdict(preset.match).items() if value is not None}
    wanted = ", ".join(f"{name} = {value}" for name, value in match.items()) or "any model"
    values = ", ".join(f"{name} = {value}" for name, value in preset.params.items())
    return code(preset.name), cell(wanted), cell(preset.source), cell(values)
