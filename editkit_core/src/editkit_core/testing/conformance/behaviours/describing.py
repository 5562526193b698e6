"""What a method says about itself is true, and saying it is quick."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import attrs

from editkit_core.errors import EditkitError
from editkit_core.params import load_presets, structure, unstructure
from editkit_core.testing.conformance.behaviour import Behaviour, of_methods
from editkit_core.testing.conformance.workbench import Workbench

_HEAVY = ("numpy", "torch", "transformers")


def describing_it_is_light(bench: Workbench) -> None:
    """Importing the method and asking what it is imports no torch, transformers or numpy."""
    name = _module(bench)
    if name is None:
        return  # made in memory; nothing can be imported again
    code = (
        f"import sys, {name} as method; method.editkit_method(); "
        f"print([m for m in {_HEAVY!r} if m in sys.modules])"
    )
    done = _python(code)
    bench.expect(done.returncode == 0, f"{name} cannot be imported alone: {done.stderr[-500:]}")
    bench.expect(
        done.stdout.strip() == "[]",
        f"importing {name} and calling editkit_method imports {done.stdout.strip()}. Import them "
        "inside the hooks that need them.",
    )


def a_description_is_complete(bench: Workbench) -> None:
    """A method has a title of one line, and says which kinds it emits, all of them known."""
    info = bench.info
    bench.expect(
        bool(info.title.strip()) and "\n" not in info.title,
        f"its title is {info.title!r}. Give one line for people.",
    )
    bench.expect(bool(info.emits), "it emits no kind. Name the kinds of entries in its patches.")
    unknown = sorted(set(info.emits) - set(bench.kinds))
    bench.expect(
        not unknown,
        f"it emits {', '.join(unknown)}, which nothing installed registers. Known kinds: "
        f"{', '.join(sorted(bench.kinds))}.",
    )


def parameters_survive_a_file(bench: Workbench) -> None:
    """Parameters as JSON and back are the same; they are frozen, and their defaults stand."""
    kind = bench.info.params()
    bench.expect(attrs.has(kind), f"its parameters {kind!r} are no attrs class.")
    for values in ({}, dict(bench.case.params)):
        try:
            made = structure(kind, values, owner=bench.info.name)
        except EditkitError as error:
            needed = [f.name for f in attrs.fields(kind) if f.default is attrs.NOTHING]
            bench.expect(bool(needed) and not values, f"its parameters {values} fail: {error}")
            continue
        again = structure(kind, json.loads(json.dumps(unstructure(made))), owner=bench.info.name)
        bench.expect(
            again == made, f"its parameters {made!r:.200} come back from JSON as {again!r:.200}."
        )


def presets_are_valid(bench: Workbench) -> None:
    """Every preset can be read, says where its values come from, and has only known parameters."""
    kind = bench.info.params()
    presets = load_presets(bench.info)
    needed = {field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING}
    for preset in presets:
        bench.expect(bool(preset.source.strip()), f"the preset {preset.name} has no source.")
        missing = needed - set(preset.params)
        bench.expect(
            not missing, f"the preset {preset.name} gives no value for {', '.join(missing)}."
        )
        try:
            structure(kind, preset.params, owner=bench.info.name)
        except EditkitError as error:
            bench.expect(False, f"the preset {preset.name} is not valid: {error}")


def a_patch_is_shown_without_the_plugin(bench: Workbench) -> None:
    """Where the method cannot be imported, ``editkit patch show`` shows its patch."""
    patch = bench.first.patch
    file = bench.folder / "shown.editkit.safetensors"
    patch.save(file, force=True)
    package = (_module(bench) or "").partition(".")[0]
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from editkit_core.cli import main\n"
        f"main(['patch', 'show', {str(file)!r}])"
    )
    done = _python(code)
    bench.expect(
        done.returncode == 0 and patch.id in done.stdout,
        f"editkit patch show fails on its patch where {package or 'it'} is not installed: "
        f"{done.stderr[-500:]}",
    )


def _module(bench: Workbench) -> str | None:
    """Return the name by which the method can be imported in another process."""
    plugin, _, _ = bench.host.load_method(bench.found.name)
    name = getattr(plugin, "__name__", None)
    if not isinstance(name, str) or name not in sys.modules:
        return None
    return name if importlib.util.find_spec(name) is not None else None


def _python(code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


BEHAVIOURS: tuple[Behaviour, ...] = tuple(
    of_methods(check)
    for check in (
        describing_it_is_light,
        a_description_is_complete,
        parameters_survive_a_file,
        presets_are_valid,
        a_patch_is_shown_without_the_plugin,
    )
)
