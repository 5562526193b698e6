"""Runs: many edits of one model by one method, measured, written down as they finish, resumable.

Importing this package is cheap; what needs torch is loaded when a run starts.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editkit_core.bench.estimating import Estimate, estimate
    from editkit_core.bench.plan import Plan
    from editkit_core.bench.reading import Run, read_run
    from editkit_core.bench.record import Unit
    from editkit_core.bench.running import RunResult, run
    from editkit_core.bench.scenario import Scenario
    from editkit_core.bench.sweep import Sweep, read_sweep, run_sweep

_HOMES = {
    "Estimate": "estimating",
    "Plan": "plan",
    "Run": "reading",
    "RunResult": "running",
    "Scenario": "scenario",
    "Sweep": "sweep",
    "Unit": "record",
    "estimate": "estimating",
    "read_run": "reading",
    "read_sweep": "sweep",
    "run": "running",
    "run_sweep": "sweep",
}
__all__ = [
    "Estimate",
    "Plan",
    "Run",
    "RunResult",
    "Scenario",
    "Sweep",
    "Unit",
    "estimate",
    "read_run",
    "read_sweep",
    "run",
    "run_sweep",
]


def __getattr__(name: str) -> Any:  # Any: the public names have many types
    """Import a public name from its home module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found  # a submodule of the same name must not take its place
    return found
