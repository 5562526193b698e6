"""What the tests of checkpoint folders share: a tiny one on disk, and the digests of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from editkit_core.testing.models import tiny_model


def saved(path: Path, family: str, dtype: torch.dtype, shard: str) -> Path:
    """Save a tiny model and its tokenizer, in shards of at most ``shard``."""
    model = tiny_model(family)
    model.model.to(dtype)
    model.model.save_pretrained(path, max_shard_size=shard)
    model.tokenizer.save_pretrained(path)
    return path


def state(folder: Path) -> dict[str, str]:
    """Return the digest of every file, by its path in the folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
