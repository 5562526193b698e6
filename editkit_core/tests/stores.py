"""What the tests of the store share: a tiny base on disk, patches for it, and a stack on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.numpy import load_file

from editkit_core.patch import Patch
from editkit_core.stack import operations
from editkit_core.stack.store import StackDocument, StackStore

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel


def tiny(seed: int = 0) -> EditableModel:
    from editkit_core.testing import tiny_model

    return tiny_model("gpt2", n_layers=2, d=16, seed=seed)


def saved_base(folder: Path) -> Path:
    """Save the tiny model as a checkpoint."""
    model = tiny()
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def patches_for(model: EditableModel, count: int) -> list[Patch]:
    """Make patches named p0, p1 … on the layers 0, 1, 0 …"""
    from editkit_core.testing.patches import random_patch

    return [
        random_patch(model, seed=i, layers=(i % 2,), name=f"p{i}", evidence=False)
        for i in range(count)
    ]


def new_store(folder: Path, base: Path) -> StackStore:
    return StackStore.init(folder, model=str(base), base=base)


def push(store: StackStore, patch: Patch) -> StackDocument:
    entry = store.add(patch)
    return store.update(lambda state: operations.push(state, entry), action=f"push {entry.id}")


def remove(store: StackStore, reference: str) -> StackDocument:
    return store.update(lambda state: operations.remove(state, reference), action="remove")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a stack by name, but for the one that is locked."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def object_path(folder: Path, digest: str) -> Path:
    """Where the issue wants a patch file to be."""
    return folder / "objects" / digest[:2] / f"{digest}.editkit.safetensors"


def stated(folder: Path) -> dict[str, object]:
    """What ``stack.json`` says, read as plain JSON."""
    fields: dict[str, object] = json.loads((folder / "stack.json").read_text(encoding="utf-8"))
    return fields


def weights(base: Path) -> dict[str, object]:
    return dict(load_file(base / "model.safetensors"))
