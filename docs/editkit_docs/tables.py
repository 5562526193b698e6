"""Short reference pages: patch kinds and header, model families, requests, errors."""

from __future__ import annotations

import inspect

from editkit_core import errors
from editkit_core.models.families import BUILTIN_FAMILIES
from editkit_core.patch.header import (
    BaseFingerprint,
    EntryHeader,
    MethodRef,
    PatchHeader,
    TensorFingerprint,
)
from editkit_core.patch.kinds import BUILTIN_KINDS
from editkit_core.patch.kinds.codebook import Codebook, CodebookEntry
from editkit_core.types import EditRequest, Probe
from editkit_docs.docstrings import first_line, items, plain
from editkit_docs.markdown import cell, code, page, table


def attributes(kind: type) -> str:
    """Return a class's documented attributes as a table."""
    rows = [(code(k), cell(v)) for k, v in items(kind, "Attributes").items()]
    return table(("field", "meaning"), rows)


def kinds_page() -> str:
    """Return the page of entry kinds and header fields."""
    blocks = []
    for name, kind in BUILTIN_KINDS.items():
        stored = ", ".join(f"`{field}` ({dtype})" for field, dtype in kind.dtypes.items())
        blocks += [f"### {name}", first_line(kind), f"Tensors: {stored}.", attributes(kind)]
        if kind is CodebookEntry:
            blocks += ["#### Codebook", first_line(Codebook), attributes(Codebook)]
    for header in (PatchHeader, MethodRef, BaseFingerprint, TensorFingerprint, EntryHeader):
        blocks += [f"### {header.__name__}", first_line(header), attributes(header)]
        if header is PatchHeader:
            blocks.insert(-3, "## Header")
    intro = "How a patch file is laid out and read: [Patch files](patch-files.md)."
    return page("Entry kinds and header fields", intro, "## Entry kinds", *blocks)


def families_page() -> str:
    """Return the page of model families."""
    intro = (
        "A family says where things are in a model. It is found from the model's own modules; "
        "`config.model_type` only breaks ties, so an unlisted model built like one of these is "
        "edited as that family. A plugin adds one with "
        "[`editkit_register_model_families`](hooks.md#editkit_register_model_families)."
    )
    rows = [
        (
            code(f.name),
            ", ".join(map(code, f.model_types)),
            ", ".join(code(f.mlp_down(0, stack)) for stack in f.stacks),
        )
        for f in BUILTIN_FAMILIES
    ]
    stacks = (
        "An encoder-decoder has two stacks of blocks, and its layers are counted from 0 in each. "
        "Where a layer is given without its stack, the decoder's is meant. The form of the "
        "feed-forward makes no family of its own: T5 with ReLU and its gated successors "
        "(version 1.1, FLAN) are edited alike."
    )
    return page(
        "Model families",
        intro,
        table(("family", "model types", "edited weights, layer 0"), rows),
        stacks,
    )


def requests_page() -> str:
    """Return the page of request fields."""
    intro = (
        "A request is one fact to change. A file of requests is JSON lines (`.jsonl`), a JSON list "
        "(`.json`) or YAML (`.yaml`, `.yml`); `prompt`, `subject` and `target_new` are required. "
        "An unknown field is refused. An example: [Edit from a file](../how-to/requests.md)."
    )
    probe = [f"## {Probe.__name__}", first_line(Probe), attributes(Probe)]
    return page("Requests", intro, "## EditRequest", attributes(EditRequest), *probe)


def error_classes() -> dict[str, type[errors.EditkitError]]:
    """Return every error class by its code, in the order of the file."""
    return {
        value.code: value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, errors.EditkitError)
    }


def errors_page() -> str:
    """Return the index of error codes."""
    intro = (
        "Every error has a code that stays the same from release to release. On the command line "
        "an error is one line; `editkit --debug` adds the traceback. In Python all derive from "
        "`editkit_core.EditkitError`, and the facts of a message are attributes of the error. The "
        "codes that end in 00 are the groups to catch them by."
    )
    rows = [
        (f"[{found}]({found}.md)", code(kind.__name__), str(kind.exit_code), cell(_what(kind)))
        for found, kind in error_classes().items()
    ]
    return page("Errors", intro, table(("code", "class", "exit code", "what happened"), rows))


def _what(kind: type) -> str:
    return plain(first_line(kind))
