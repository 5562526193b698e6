"""Random numbers that depend on the seed and on the batch alone, whoever drew before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["own_randomness", "seed_for"]


def seed_for(seed: int, number: int) -> None:
    """Seed torch, numpy and ``random`` for one batch."""
    digest = hashlib.sha256(f"{seed}\nbatch\n{number}".encode()).digest()
    value = int.from_bytes(digest[:4], "big")
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the global random state, on every device, as it was before the ``with`` block."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
