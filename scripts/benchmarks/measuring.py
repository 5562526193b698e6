"""What the benchmarks share: the machine in words, works timed in turn, and memory at its peak."""

from __future__ import annotations

import gc
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

Seconds: TypeAlias = npt.NDArray[np.float64]  # on the clock, of the processor

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_RESIDENT = Path("/proc/self/statm")


def machine() -> dict[str, Any]:  # Any: numbers and words
    """Return what the figures were measured on, with the load of the moment."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def in_turn(works: Sequence[Callable[[], object]], rounds: int) -> list[Seconds]:
    """Return the median times of each work; all are run in turn, so that noise meets all."""
    found: list[list[Seconds]] = [[] for _ in works]
    for _ in range(rounds):
        for work, times in zip(works, found, strict=True):
            times.append(seconds(work)[0])
    return [np.median(times, axis=0) for times in found]


def seconds(work: Callable[[], Any]) -> tuple[Seconds, Any]:  # Any: what the work returns
    """Run once and return the seconds it took, and its result.

    The second number, the processor's seconds over all threads, hardly depends on what else runs.
    """
    start = time.perf_counter(), time.process_time()
    result = work()
    end = time.perf_counter(), time.process_time()
    return np.array(end) - np.array(start), result


@contextmanager
def peak_bytes() -> Iterator[dict[str, int]]:
    """Yield a dict that holds ``peak`` after the block: resident bytes above those at its start.

    Sampled every 2 ms from the process's resident set, as Linux tells it; torch gives large
    tensors back as soon as they are dropped.
    """
    gc.collect()
    found: dict[str, int] = {}
    start = highest = _resident()
    over = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.002):
            highest = max(highest, _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        found["peak"] = max(highest, _resident()) - start


def _resident() -> int:
    return int(_RESIDENT.read_text().split()[1]) * _PAGE_BYTES


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return ‖one - other‖ / ‖other‖."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def show(rows: Sequence[Mapping[str, Any]]) -> None:  # Any: numbers and words
    """Print the rows as a table; a column that a row lacks stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=None)
    for name in names:
        table.add_column(name, justify="left" if isinstance(rows[0].get(name), str) else "right")
    for row in rows:
        table.add_row(*(_text(row.get(name)) for name in names))
    Console(width=150).print(table)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
    return "" if value is None else str(value)


def keep(path: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:  # Any: numbers and words
    """Write the rows with the machine, if a file is named."""
    if path is not None:
        content = {"machine": machine(), "rows": list(rows)}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
