"""Editor artifacts: kept exactly, read strictly, for their base alone."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from editkit_core.errors import (
    BaseMismatchError,
    EditorMissingError,
    InputNotFoundError,
    OutputExistsError,
    PatchDigestError,
    PatchFormatError,
    PatchVersionError,
)
from editkit_core.models.editable import EditableModel
from editkit_core.patch import digests
from editkit_core.patch.apply import apply_patch
from editkit_core.patch.artifact import EditorArtifact, TrainingRecord, subject_marks
from editkit_core.patch.artifact_io import is_editor
from editkit_core.patch.container import RawTensor, encode, parse_layout
from editkit_core.patch.fingerprint import base_fingerprint
from editkit_core.patch.format import Patch
from editkit_core.patch.header import MethodRef
from editkit_core.testing import tiny_model
from editkit_core.testing.patches import random_patch
from editkit_core.types import EditRequest

TARGETS = ("transformer.h.1.mlp.c_proj.weight", "transformer.h.2.mlp.c_proj.weight")
WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)
RECORD = TrainingRecord(
    steps=40,
    dataset="toys: 32 toys",
    dataset_digest="0" * 64,
    requests=28,
    split={"how": "by subject", "share": 0.1},
    seed=2**60 + 1,
    metrics={"reliability": 0.96875},
    schedule={"steps": 60},
    overlap=("Perú",),
    stopped="patience",
)
Edit = Callable[[dict[str, Any]], None]  # Any: JSON values


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def artifact(model: EditableModel) -> EditorArtifact:
    return EditorArtifact.from_parts(
        method=MethodRef(name="toy", dist="editkit-toy", version="1.0"),
        base=base_fingerprint(model, TARGETS),
        tensors={
            "net.0.map-a": WEIGHTS,
            "alpha": np.array(-1e-4),
            "count": np.array([2**53 + 1], np.int64),
        },
        training=RECORD,
        params={"rank": 4, "targets": ["a", "b"]},
        subjects=("Norway", "Perú"),
        environment={"python": "3"},
    )


@pytest.fixture
def file(artifact: EditorArtifact, tmp_path: Path) -> Path:
    path = tmp_path / "toy.editor.safetensors"
    artifact.save(path)
    return path


def forged(path: Path, change: Edit | None = None, *, seal: bool = True, **more: Any) -> None:
    """Write the file anew with other metadata, its digests made to fit unless ``seal`` is false.

    ``more`` are tensors to add as `RawTensor`, or None to leave one out.
    """
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    layout = parse_layout(data[8 : 8 + length], "here")
    body = data[8 + length :]
    tensors = {
        s.name: RawTensor(dtype=s.dtype, shape=s.shape, data=body[s.start : s.stop])
        for s in layout.slots
    }
    fields = json.loads(layout.metadata["editkit"])
    for name, tensor in more.items():
        name = name.replace("__", ".")
        if tensor is None:
            tensors.pop(name)
        else:
            tensors[name] = tensor
    if change is not None:
        change(fields)
    if seal:
        fields["content_digest"] = digests.content_digest(fields)
        fields["id"] = f"ed-{fields['content_digest'][:16]}"
        fields["checksum"] = digests.checksum(fields)
    text = digests.canonical(fields, "metadata").decode()
    path.write_bytes(b"".join(encode({"editkit": text}, tensors)))


def test_an_editor_comes_back_as_it_was(artifact: EditorArtifact, file: Path) -> None:
    back = EditorArtifact.load(file)
    assert back.header == artifact.header
    assert back.training == RECORD
    assert set(back.tensors) == set(artifact.tensors)
    for name, array in artifact.tensors.items():
        assert back.tensors[name].dtype == array.dtype
        assert np.array_equal(back.tensors[name], array)
        assert not back.tensors[name].flags.writeable
    assert np.array_equal(back.subjects, artifact.subjects)


def test_the_id_is_of_the_content_and_not_of_the_day(
    artifact: EditorArtifact, model: EditableModel
) -> None:
    def again(**changed: Any) -> EditorArtifact:
        parts: dict[str, Any] = {
            "method": artifact.method,
            "base": artifact.base,
            "tensors": artifact.tensors,
            "training": RECORD,
            "params": artifact.params,
            "subjects": ("Perú", "Norway", "norway "),
            "environment": {"python": "3"},
            "created": "1999-01-01T00:00:00Z",
        }
        return EditorArtifact.from_parts(**{**parts, **changed})

    assert again().id == artifact.id
    assert again().id.startswith("ed-")
    assert again(params={"rank": 5}).id != artifact.id
    assert again(tensors={**artifact.tensors, "alpha": np.array(1e-4)}).id != artifact.id
    assert again(subjects=("Norway",)).id != artifact.id


def test_saving_twice_gives_the_same_bytes_and_other_tools_read_them(
    artifact: EditorArtifact, file: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    artifact.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    assert np.array_equal(load_file(file)["editor.net.0.map-a"], WEIGHTS)


def test_an_editor_is_found_in_the_folder_of_its_training(
    artifact: EditorArtifact, tmp_path: Path
) -> None:
    artifact.save(tmp_path / "editor.safetensors")
    assert EditorArtifact.load(tmp_path).id == artifact.id


def test_an_existing_file_is_kept_unless_it_may_be_overwritten(
    artifact: EditorArtifact, file: Path
) -> None:
    with pytest.raises(OutputExistsError):
        artifact.save(file)
    artifact.save(file, overwrite=True)
    assert EditorArtifact.load(file).id == artifact.id


def test_a_base_that_fits_is_accepted_also_with_patches_on_it(
    artifact: EditorArtifact, model: EditableModel
) -> None:
    artifact.check_base(model)
    with apply_patch(model, random_patch(model)):
        artifact.check_base(model)


def test_another_base_is_refused_with_both_digests_and_the_remedy(artifact: EditorArtifact) -> None:
    other = tiny_model("gpt2", seed=1)
    with pytest.raises(BaseMismatchError) as caught:
        artifact.check_base(other)
    weight = other.model.get_parameter(TARGETS[0]).detach().numpy()
    message = str(caught.value)
    for part in (
        artifact.id,
        artifact.base.tensors[TARGETS[0]].sha256,
        hashlib.sha256(weight.tobytes()).hexdigest(),
        "editkit train toy --model",
    ):
        assert part in message
    assert caught.value.exit_code == 6


def test_a_model_without_the_weights_is_refused(artifact: EditorArtifact) -> None:
    with pytest.raises(BaseMismatchError, match="no such weight"):
        artifact.check_base(tiny_model("llama"))


def test_an_editor_of_another_method_is_refused(artifact: EditorArtifact) -> None:
    artifact.check_method("toy")
    with pytest.raises(EditorMissingError, match="is for the method 'toy'"):
        artifact.check_method("mend")


def test_it_knows_the_subjects_it_was_trained_on(artifact: EditorArtifact) -> None:
    def about(subject: str) -> EditRequest:
        return EditRequest(prompt="{} is", subject=subject, target_new="x")

    asked = [about(name) for name in ("Chile", " perú", "Norway", "NORWAY", "Norwa", "Norway")]
    assert artifact.trained_on(asked) == (" perú", "Norway", "NORWAY")
    assert artifact.trained_on([]) == ()


def test_a_mark_is_eight_bytes_of_a_digest() -> None:
    expected = hashlib.sha256(b"norway").digest()[:8]
    assert subject_marks([" Norway"]).tobytes() == expected
    assert subject_marks([]).shape == (0, 8)


def test_reading_imports_no_torch(file: Path) -> None:
    code = (
        "import sys; from editkit_core.patch.artifact import EditorArtifact; "
        f"EditorArtifact.load({str(file)!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# -- what is refused --------------------------------------------------------------------------


def test_every_changed_byte_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    places = np.random.default_rng(0).integers(0, len(whole), 120)
    for place in {*places.tolist(), len(whole) - 1}:
        changed = bytearray(whole)
        changed[place] ^= 0x10
        file.write_bytes(changed)
        with pytest.raises((PatchFormatError, PatchDigestError, PatchVersionError)):
            EditorArtifact.load(file)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_file_that_was_cut_short_is_refused(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(PatchFormatError):
        EditorArtifact.load(file)


def test_bytes_after_the_end_are_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(PatchFormatError, match="the header announces"):
        EditorArtifact.load(file)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "editor.pt"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(PatchFormatError, match="a zip archive, perhaps a PyTorch file"):
        EditorArtifact.load(path)


def test_a_patch_is_no_editor_and_an_editor_no_patch(
    file: Path, model: EditableModel, tmp_path: Path
) -> None:
    path = tmp_path / "a.editkit.safetensors"
    random_patch(model).save(path)
    assert is_editor(file)
    assert not is_editor(path)
    assert not is_editor(tmp_path / "nowhere")
    with pytest.raises(PatchFormatError, match="this is a patch, not a trained editor"):
        EditorArtifact.load(path)
    with pytest.raises(PatchFormatError, match="this is a trained editor, not a patch"):
        Patch.load(file)


def test_another_format_version_says_so(file: Path) -> None:
    forged(file, lambda fields: fields.update(spec="editkit.editor/2"))
    with pytest.raises(PatchVersionError, match=r"reads editkit\.editor/1"):
        EditorArtifact.load(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="editkit train"):
        EditorArtifact.load(tmp_path / "none")
    with pytest.raises(InputNotFoundError, match=r"editor\.safetensors"):
        EditorArtifact.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(more=1), "more"),
        (lambda f: f.pop("method"), "method"),
        (lambda f: f.update(kind="patch"), "kind"),
        (lambda f: f["training"].update(steps="40"), "steps"),
        (lambda f: f["training"].update(seed=5), "seed"),
        (lambda f: f["training"].update(stopped=""), "spells out default values"),
        (lambda f: f["tensors"].update({"editor.more": "0" * 64}), "editor.more"),
        (lambda f: f.update(spec=1), "must be editkit.editor/1"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(file: Path, change: Edit, message: str) -> None:
    forged(file, change)
    with pytest.raises(PatchFormatError) as caught:
        EditorArtifact.load(file)
    assert message in str(caught.value)


@pytest.mark.parametrize("field", ["id", "content_digest", "checksum"])
def test_a_digest_that_is_not_of_the_content_is_refused(file: Path, field: str) -> None:
    forged(file, lambda fields: fields.update({field: fields[field][::-1]}), seal=False)
    with pytest.raises(PatchDigestError):
        EditorArtifact.load(file)


def raw(array: np.ndarray[Any, Any], dtype: str) -> RawTensor:
    return RawTensor(dtype=dtype, shape=array.shape, data=array.tobytes())


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("editor__alpha", None, "is missing"),
        ("editor__extra", raw(WEIGHTS, "F32"), "not in the metadata"),
        ("alpha", raw(WEIGHTS, "F32"), "a name no editor uses"),
        ("editor__..__up", raw(WEIGHTS, "F32"), "a name no editor uses"),
        ("editor__alpha", raw(np.zeros((0, 2)), "F64"), "is empty"),
        ("editor__alpha", raw(np.zeros(1, np.bool_), "BOOL"), "has the dtype BOOL"),
    ],
)
def test_tensors_that_do_not_belong_are_refused(
    file: Path, name: str, tensor: RawTensor | None, message: str
) -> None:
    forged(file, **{name: tensor})
    with pytest.raises(PatchFormatError, match=message):
        EditorArtifact.load(file)


def test_a_number_that_is_none_is_refused_even_with_fitting_digests(file: Path) -> None:
    nan = np.array(np.nan)

    def listed(fields: dict[str, Any]) -> None:
        fields["tensors"]["editor.alpha"] = digests.tensor_digest("editor.alpha", nan)

    forged(file, listed, editor__alpha=raw(nan, "F64"))
    with pytest.raises(PatchFormatError, match=r"editor\.alpha is not finite"):
        EditorArtifact.load(file)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "at least one tensor"),
        ({"a..b": WEIGHTS}, "cannot be named"),
        ({"a/b": WEIGHTS}, "cannot be named"),
        ({"x" * 201: WEIGHTS}, "cannot be named"),
        ({"a": WEIGHTS.astype(np.int32)}, "is int32"),
        ({"a": WEIGHTS[:0]}, "is empty"),
        ({"a": np.array([np.inf])}, "is not finite"),
    ],
)
def test_an_editor_that_could_not_be_read_again_is_not_made(
    artifact: EditorArtifact, tensors: dict[str, Any], message: str
) -> None:
    with pytest.raises(PatchFormatError, match=message):
        EditorArtifact.from_parts(
            method=artifact.method, base=artifact.base, tensors=tensors, training=RECORD
        )


def test_numbers_changed_after_the_making_do_not_change_the_editor(
    artifact: EditorArtifact,
) -> None:
    mine = WEIGHTS.copy()
    made = EditorArtifact.from_parts(
        method=artifact.method, base=artifact.base, tensors={"a": mine}, training=RECORD
    )
    mine[0, 0] = 99
    assert made.tensors["a"][0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        made.tensors["a"][0, 0] = 1
    assert attrs.asdict(made.training) == attrs.asdict(RECORD)
