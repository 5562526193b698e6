"""A tiny checkpoint and patches for it, to drive the stack's commands quickly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from editkit_core import EditRequest, Patch
from editkit_core.models.editable import EditableModel
from editkit_core.patch.header_codec import seal
from editkit_core.testing.models import tiny_model
from editkit_core.testing.patches import random_patch

FACTS = {
    "oslo": ("The capital of {} is", "Norway", "Lima"),
    "warsaw": ("{} was born in", "Marie Curie", "Delft"),
    "fuji": ("{} stands in", "Mount Fuji", "Peru"),
}


def saved(folder: Path, family: str = "gpt2", seed: int = 0) -> Path:
    model = tiny_model(family, seed=seed)
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def made(model: EditableModel, fact: str, /, **header: object) -> Patch:
    """One rank-one patch of layer 1 about the fact of that name; without keys, so no crosstalk."""
    prompt, subject, target = FACTS[fact]
    patch = random_patch(model, layers=(1,), seed=sorted(FACTS).index(fact), evidence=False)
    edit = EditRequest(prompt=prompt, subject=subject, target_new=target)
    fields = {"edits": (edit,), **header}
    return attrs.evolve(patch, header=seal(attrs.evolve(patch.header, **fields)))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 checkpoint in a folder; read-only."""
    return saved(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> EditableModel:
    """The model of that folder; read-only."""
    return EditableModel.from_pretrained(str(tiny_folder))


@pytest.fixture(scope="session")
def patch_files(tiny: EditableModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one patch file for each fact."""
    folder = tmp_path_factory.mktemp("patches")
    for name in FACTS:
        made(tiny, name).save(folder / f"{name}.editkit.safetensors")
    return folder


@pytest.fixture
def file(patch_files: Path) -> Callable[[str], Path]:
    """The file of a fact's patch."""
    return lambda name: patch_files / f"{name}.editkit.safetensors"


@pytest.fixture
def empty(cli, tiny_folder: Path, tmp_path: Path) -> Path:
    """An empty stack in the current folder's default place, on a base of its own."""
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    ran = cli("stack", "init", "--model", base)
    assert ran.code == 0, ran.err
    return tmp_path / ".editkit"


@pytest.fixture
def stack(cli, empty: Path, file: Callable[[str], Path]) -> Path:
    """A stack of three applied patches: oslo, warsaw, fuji."""
    ran = cli("stack", "push", *(file(name) for name in FACTS))
    assert ran.code == 0, ran.err
    return empty


@pytest.fixture
def make(tiny: EditableModel, tmp_path: Path) -> Callable[..., Path]:
    """Write one more patch file for the tiny base, with header fields of the test's own."""

    def write(called: str, fact: str = "oslo", /, **header: object) -> Path:
        path = tmp_path / f"{called}.editkit.safetensors"
        made(tiny, fact, **header).save(path)
        return path

    return write
