"""Sweeps: every combination of models, methods, data sets, scenarios and seeds of a YAML file.

    models: [editkit:demo, {model: gpt2, dtype: bfloat16}]
    methods: [rome, {name: rome-original, method: rome, params: {variant: rome}}]
    datasets: [demo:100]
    scenarios: [single, sequential]
    seeds: [0]
    metrics: [reliability, locality]

Each list may be a single value. What stands in a mapping, and every other name of a `Plan`, is
passed on. Each run has a folder of its own and a process of its own; the replies of an unedited
model are shared.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

import attrs

from editkit_core.atomic import write_file
from editkit_core.bench.folder import REPLIES
from editkit_core.bench.plan import Plan
from editkit_core.errors import (
    InvalidParameterError,
    OutputExistsError,
    UnknownParameterError,
    WriteFailedError,
    did_you_mean,
)
from editkit_core.types import Progress, SilentProgress

__all__ = ["Outcome", "Sweep", "read_sweep", "run_sweep"]

SPEC = "editkit.sweep/1"
META = "sweep.json"
_AXES = {
    "models": "model",
    "methods": "method",
    "datasets": "dataset",
    "scenarios": "scenario",
    "seeds": "seed",
}
_DEFAULTS: dict[str, list[Any]] = {  # Any: YAML values
    "methods": ["rome"],
    "scenarios": ["single"],
    "seeds": [0],
}


@attrs.frozen
class Sweep:
    """Several runs.

    Attributes:
        plans: The plans, by the name of the run's folder.
    """

    plans: Mapping[str, Plan]


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one run of a sweep.

    Attributes:
        name: The run.
        summary: What its ``summary.json`` says, or None when it failed.
        code: The error's code, or empty.
        message: What happened, or empty.
    """

    name: str
    summary: dict[str, Any] | None = None  # Any: JSON values
    code: str = ""
    message: str = ""


def read_sweep(path: Path) -> Sweep:
    """Read a sweep from YAML or JSON.

    Raises:
        InputNotFoundError: The file cannot be read.
        ParamsFileError: It is no mapping.
        UnknownParameterError: A name that neither sweeps nor plans have.
        InvalidParameterError: A value does not fit, or two runs have one name.
    """
    from editkit_core.params import load_mapping

    return Sweep(_plans(load_mapping(path), path))


def run_sweep(
    sweep: Sweep, out: str | Path, *, workers: int = 1, progress: Progress | None = None
) -> tuple[Outcome, ...]:
    """Do every run of a sweep, or what is missing of it, in processes of their own.

    Args:
        sweep: The runs.
        out: A folder; each run gets one in it.
        workers: How many processes at a time; they share the processor's cores.
        progress: Told of every run that ends.

    Returns:
        What became of each, in the sweep's order; one that fails does not stop the others.

    Raises:
        OutputExistsError: The folder holds something else than a sweep.
    """
    out = Path(out)
    _begin(sweep, out)
    progress = progress or SilentProgress()
    progress.start("runs", len(sweep.plans))
    running: set[subprocess.Popen[str]] = set()
    outcomes: dict[str, Outcome] = {}
    pool = ThreadPoolExecutor(workers)
    try:
        work = {
            pool.submit(_in_process, name, plan, out, workers, running): name
            for name, plan in sweep.plans.items()
        }
        for done in as_completed(work):
            outcomes[work[done]] = done.result()
            progress.advance(note=work[done])
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        progress.finish()
    return tuple(outcomes[name] for name in sweep.plans)


def _plans(values: Mapping[str, Any], path: Path) -> dict[str, Plan]:  # Any: YAML values
    known = {field.name for field in attrs.fields(Plan)} - set(_AXES.values())
    for name in values:
        if name not in known and name not in _AXES:
            near = did_you_mean(str(name), [*known, *_AXES])
            raise UnknownParameterError(
                f"{path.name} has {name!r}, which is no setting of a sweep.{near} Known: "
                f"{', '.join([*_AXES, *sorted(known)])}.",
                parameter=name,
            )
    common = {name: value for name, value in values.items() if name in known}
    axes = [list(_axis(name, values, path)) for name in _AXES]
    plans: dict[str, Plan] = {}
    for chosen in product(*axes):
        merged: dict[str, Any] = dict(common)  # Any: YAML values
        for _, settings in chosen:
            merged |= settings
        name = "_".join(_slug(label) for label, _ in chosen)
        if name in plans:
            raise InvalidParameterError(
                f"Two runs of {path.name} would be called {name!r}. Tell their models or methods "
                "apart with a name: {name: ..., method: ...}.",
                run=name,
            )
        plans[name] = Plan.of(merged)
    return plans


def _axis(
    axis: str, values: Mapping[str, Any], path: Path
) -> Iterator[tuple[str, dict[str, Any]]]:  # Any: YAML values
    """Yield a label and settings for each value of one axis."""
    if axis not in values and axis not in _DEFAULTS:
        raise InvalidParameterError(
            f"{path.name} names no {axis}. Add, for example, {axis}: [...].", parameter=axis
        )
    given = values.get(axis, _DEFAULTS.get(axis))
    listed = given if isinstance(given, list) else [given]
    if not listed:
        raise InvalidParameterError(f"{axis} of {path.name} is empty.", parameter=axis)
    key = _AXES[axis]
    for value in listed:
        if not isinstance(value, Mapping):
            yield _label(axis, value), {key: value}
            continue
        settings = {str(name): each for name, each in value.items() if name != "name"}
        if key not in settings:
            raise InvalidParameterError(
                f"An entry under {axis} in {path.name} has no {key!r}: {dict(value)!r:.80}. Add "
                "it.",
                parameter=key,
            )
        yield str(value.get("name", _label(axis, settings[key]))), settings


def _label(axis: str, value: Any) -> str:  # Any: YAML values
    text = str(value)
    if axis == "seeds":
        return f"seed-{text}"
    if axis == "models":
        return text.replace("\\", "/").rstrip("/").rpartition("/")[2].removeprefix("editkit:")
    if axis == "datasets" and "/" in text:
        return Path(text.partition(":")[2] or text).stem
    return text


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "run"


def _begin(sweep: Sweep, out: Path) -> None:
    """Make the folder, or see that it is a sweep's."""
    if out.exists() and not (out / META).exists():
        others = [out.name] if not out.is_dir() else sorted(p.name for p in out.iterdir())
        if others:
            raise OutputExistsError(
                f"{out} holds {others[0]} and no {META}, so it is not the folder of a sweep. "
                "Choose another --out.",
                path=str(out),
            )
    meta = {"spec": SPEC, "runs": {name: plan.public() for name, plan in sweep.plans.items()}}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteFailedError(
            f"Cannot make {out}: {error.strerror or error}. Choose another --out.", path=str(out)
        ) from error
    write_file(out / META, [(json.dumps(meta, indent=1) + "\n").encode()], force=True)


def _in_process(
    name: str, plan: Plan, out: Path, workers: int, running: set[subprocess.Popen[str]]
) -> Outcome:
    """Do one run in a process of its own, so that nothing it does touches the others."""
    asked = {
        "plan": attrs.asdict(plan),
        "out": str(out / name),
        "replies": str(out / REPLIES),
    }
    threads = max(1, (os.cpu_count() or 1) // workers)
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    process = subprocess.Popen(
        [sys.executable, "-m", "editkit_core.bench.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=env,
    )
    running.add(process)
    try:
        said, complaints = process.communicate(json.dumps(asked))
    finally:
        running.discard(process)
    try:
        answer = json.loads(said.strip().rpartition("\n")[2])
        return Outcome(name=name, **answer)
    except (ValueError, TypeError):
        last = complaints.strip().rpartition("\n")[2]
        return Outcome(
            name=name,
            code="EK-000",
            message=f"The process of this run ended with {process.returncode}: {last}. Start "
            "again to go on where it was.",
        )
