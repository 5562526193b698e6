"""How much memory is free: of the machine, of the container it pretends to be, of the device."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

__all__ = ["free_bytes"]

_CONTAINER = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device | None = None) -> int:
    """Return the bytes that can still be taken, the least of all limits that are known.

    Args:
        device: The device a model is on; a CUDA device's own memory counts too.
    """
    limits = [int(psutil.virtual_memory().available)]
    container = _container_bytes(_CONTAINER)
    if container is not None:
        limits.append(container)
    if device is not None and device.type == "cuda":
        limits.append(int(torch.cuda.mem_get_info(device)[0]))
    return max(min(limits), 0)


def _container_bytes(folder: Path) -> int | None:
    """Return what a control group (version 2) leaves, or None where none limits memory."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        caches = dict(
            line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines()
        )
    except (OSError, ValueError):
        return None
    if not limit.isdecimal():
        return None
    return int(limit) - used + int(caches.get("inactive_file", 0))  # read files can be given up
