"""The hook reference, from ``editkit_core.hookspecs``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

from editkit_core import hookspecs
from editkit_core.types import EditContext, MethodInfo, Site
from editkit_docs.docstrings import body, first_line, items, section
from editkit_docs.markdown import cell, code, page, table

VALUES = (MethodInfo, Site, EditContext)


def specifications() -> dict[str, Callable[..., object]]:
    """Return every hook specification by name, in the order of the file."""
    return {
        name: value for name, value in vars(hookspecs).items() if hasattr(value, "editkit_spec")
    }


def hooks_page() -> str:
    """Return the page."""
    version = (
        f"The hook interface has version {hookspecs.API_VERSION}; this core supports "
        f"{', '.join(map(str, sorted(hookspecs.SUPPORTED_APIS)))}. A hook implementation may leave "
        "out arguments that it does not need."
    )
    blocks = [
        block for name, function in specifications().items() for block in _hook(name, function)
    ]
    values = [block for value in VALUES for block in _value(value)]
    return page("Hooks", body(hookspecs), version, *blocks, "## Values", *values)


def _hook(name: str, function: Callable[..., object]) -> Iterator[str]:
    yield f"## {name}"
    yield f"```python\n{name}{_signature(function)}\n```"
    yield body(function)
    first = getattr(function, "editkit_spec")["firstresult"]  # noqa: B009  # set by pluggy
    yield ("The first answer counts." if first else "Everyone answers.")
    arguments = items(function, "Args").items()
    yield table(("argument", "meaning"), [(code(k), cell(v)) for k, v in arguments])
    returns = section(function, "Returns")
    yield f"**Returns:** {returns}" if returns else ""


def _signature(function: Callable[..., object]) -> str:
    signature = inspect.signature(function)
    arguments = "".join(f"    {p.name}: {p.annotation},\n" for p in signature.parameters.values())
    return (
        f"(\n{arguments}) -> {signature.return_annotation}"
        if arguments
        else (f"() -> {signature.return_annotation}")
    )


def _value(value: type) -> Iterator[str]:
    yield f"### {value.__name__}"
    yield first_line(value)
    rows = [(code(k), cell(v)) for k, v in items(value, "Attributes").items()]
    yield table(("attribute", "meaning"), rows)
