"""Time and peak memory of the stages of an edit: the field's Efficiency."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Stage:
    """What a stage cost.

    Attributes:
        name: The hook's name without its prefix.
        wall_s: Wall-clock seconds.
        peak_bytes: Peak resident memory of the process so far, bytes; 0 where it is not known.
        device_peak_bytes: Peak memory of the accelerator during the stage, bytes; 0 without one.
    """

    name: str
    wall_s: float
    peak_bytes: int
    device_peak_bytes: int


@contextmanager
def measured(name: str, stages: list[Stage]) -> Iterator[None]:
    """Append what the body cost to ``stages``; nothing is appended when it fails."""
    cuda = _cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield
    stages.append(
        Stage(
            name=name,
            wall_s=time.perf_counter() - start,
            peak_bytes=_peak_resident_bytes(),
            device_peak_bytes=int(cuda.max_memory_allocated()) if cuda is not None else 0,
        )
    )


def _cuda() -> Any:  # Any: the module torch.cuda, or None
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _peak_resident_bytes() -> int:
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
