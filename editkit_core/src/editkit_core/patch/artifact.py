"""A trained editor: the tensors a method learned, what they were learned from, the base they fit.

It is kept in the same container as a patch and read as strictly, but it is no patch: nothing
applies it, and a method that trains reads it as ``EditContext.editor``. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from editkit_core.errors import BaseMismatchError, EditorMissingError, PatchFormatError
from editkit_core.patch import digests
from editkit_core.patch.format import installed_versions
from editkit_core.patch.header import BaseFingerprint, JsonValue, MethodRef

if TYPE_CHECKING:
    from editkit_core.models.editable import EditableModel
    from editkit_core.types import EditRequest

__all__ = ["EditorArtifact", "EditorHeader", "TrainingRecord", "subject_marks"]

SPEC = "editkit.editor/1"
TENSORS = "editor."
SUBJECTS = "training.subjects"
NAME = re.compile(r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*")
LONGEST_NAME = 200
ELEMENTS = frozenset({"<f2", "<f4", "<f8", "<i8", "|u1"})
_MARK_BYTES = 8
Array = np.ndarray[Any, Any]  # Any: element type and shape


@attrs.frozen(kw_only=True)
class TrainingRecord:
    """How an editor was trained.

    Attributes:
        steps: Updates of the weights that are kept.
        dataset: The data set's name and source, for people.
        dataset_digest: SHA-256 of its files.
        requests: Number of requests it was trained on.
        split: How the validation requests were set apart, with their number and digest.
        seed: Seed of every random choice; stored as text because JSON numbers end at 2**53.
        metrics: Validation scores of the weights that are kept.
        schedule: How it was trained, as plain JSON values.
        overlap: Subjects of the validation set that were trained on too; the first of them.
        stopped: Why training ended, for example ``steps``, ``patience`` or ``minutes``.
    """

    steps: int
    dataset: str = ""
    dataset_digest: str = ""
    requests: int = 0
    split: Mapping[str, JsonValue] = attrs.field(factory=dict)
    seed: int = 0
    metrics: Mapping[str, JsonValue] = attrs.field(factory=dict)
    schedule: Mapping[str, JsonValue] = attrs.field(factory=dict)
    overlap: tuple[str, ...] = ()
    stopped: str = ""


@attrs.frozen(kw_only=True)
class EditorHeader:
    """Everything about an editor but its numbers.

    Attributes:
        spec: The format and its version.
        kind: ``editor``.
        id: ``ed-`` and 16 digits of the content digest.
        content_digest: Of the tensors' digests and all metadata but the id, the checksum and the
            time.
        checksum: Digest of the whole header but itself.
        method: Who trained it.
        base: The model it fits, with a fingerprint of every weight it edits.
        params: The method's parameters as plain JSON values.
        tensors: Digest of every tensor in the file.
        training: How it was trained.
        environment: Versions of what trained it.
        created: UTC time, ISO 8601.
    """

    spec: str = SPEC
    kind: str = "editor"
    id: str
    content_digest: str
    checksum: str
    method: MethodRef
    base: BaseFingerprint
    params: Mapping[str, JsonValue] = attrs.field(factory=dict)
    tensors: Mapping[str, str]
    training: TrainingRecord
    environment: Mapping[str, JsonValue] = attrs.field(factory=dict)
    created: str


@attrs.frozen(eq=False, kw_only=True)
class EditorArtifact:
    """A trained editor.

    Attributes:
        header: Everything but the numbers.
        tensors: What the method learned, by the method's own names; read-only.
        subjects: Marks (n, 8), uint8, of the subjects it was trained on; see `subject_marks`.
    """

    header: EditorHeader
    tensors: Mapping[str, Array]
    subjects: Array = attrs.field(factory=lambda: np.zeros((0, _MARK_BYTES), np.uint8))

    @classmethod
    def from_parts(
        cls,
        *,
        method: MethodRef,
        base: BaseFingerprint,
        tensors: Mapping[str, Array],
        training: TrainingRecord,
        params: Mapping[str, JsonValue] | None = None,
        subjects: Iterable[str] = (),
        environment: Mapping[str, JsonValue] | None = None,
        created: str | None = None,
    ) -> EditorArtifact:
        """Build an editor and compute its id and digests.

        Args:
            method: Who trained it.
            base: The model it fits; must fingerprint every weight it edits.
            tensors: What was learned, at least one; float16, float32, float64, int64 or uint8.
            training: How.
            params: The method's parameters as plain JSON values.
            subjects: The subjects it was trained on; only marks of them are kept.
            environment: Versions; None records those installed here.
            created: UTC time, ISO 8601; None means now.

        Raises:
            PatchFormatError: A value cannot be stored.
        """
        if not tensors:
            raise PatchFormatError("An editor needs at least one tensor.", where="tensors")
        kept = {name: _checked(name, array) for name, array in tensors.items()}
        marks = subject_marks(subjects)
        header = EditorHeader(
            id="",
            content_digest="",
            checksum="",
            method=method,
            base=base,
            params=dict(params or {}),
            tensors={
                name: digests.tensor_digest(name, array)
                for name, array in stored_tensors(kept, marks).items()
            },
            training=training,
            environment=dict(installed_versions() if environment is None else environment),
            created=created or datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        from editkit_core.patch.artifact_io import sealed

        return cls(header=sealed(header), tensors=kept, subjects=marks)

    @property
    def id(self) -> str:
        """Short name of the content."""
        return self.header.id

    @property
    def content_digest(self) -> str:
        """Digest of the content."""
        return self.header.content_digest

    @property
    def method(self) -> MethodRef:
        """Who trained it."""
        return self.header.method

    @property
    def base(self) -> BaseFingerprint:
        """The model it fits."""
        return self.header.base

    @property
    def params(self) -> Mapping[str, JsonValue]:
        """The method's parameters as plain JSON values."""
        return self.header.params

    @property
    def training(self) -> TrainingRecord:
        """How it was trained."""
        return self.header.training

    @property
    def nbytes(self) -> int:
        """Size of the numbers in bytes."""
        return sum(array.nbytes for array in self.tensors.values())

    def save(self, path: str | Path, *, overwrite: bool = False) -> int:
        """Write the editor's file atomically; return its size in bytes.

        Raises:
            OutputExistsError: The file exists and ``overwrite`` is false.
            WriteFailedError: It cannot be written.
        """
        from editkit_core.patch.artifact_io import save

        return save(self, Path(path), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> EditorArtifact:
        """Read an editor's file, or that in a training run's folder, strictly.

        Raises:
            InputNotFoundError: It cannot be read.
            PatchFormatError: It is not a well-formed editor.
            PatchDigestError: It was changed after it was written.
            PatchVersionError: It is of another format version.
        """
        from editkit_core.patch.artifact_io import load

        return load(Path(path))

    def check_base(self, model: EditableModel) -> None:
        """Check that a model is the one the editor was trained for.

        Patches that are on the model do not count.

        Raises:
            BaseMismatchError: A weight it edits is another one, or cannot be told.
        """
        from editkit_core.patch.fingerprint import base_mismatches, told

        wrong = base_mismatches(model, self.base)
        if wrong:
            rows = told(wrong, "the editor")
            raise BaseMismatchError(
                f"The editor {self.id} was trained for {self.base.model!r} and does not fit "
                f"{model.name!r}. {rows}. Load the model it was trained for, or train one for "
                f"this model: editkit train {self.method.name} --model …",
                patch=self.id,
                made_for=self.base.model,
                expected={m.parameter: m.expected for m in wrong},
                found={m.parameter: m.found for m in wrong},
            )

    def check_method(self, name: str) -> None:
        """Check that the editor is of this method.

        Raises:
            EditorMissingError: It is another method's.
        """
        if self.method.name != name:
            raise EditorMissingError(
                f"The editor {self.id} is for the method {self.method.name!r}, the edit asks for "
                f"{name!r}. Edit with --method {self.method.name}, or train one: editkit train "
                f"{name} --model …",
                method=name,
                found=self.method.name,
            )

    def trained_on(self, requests: Iterable[EditRequest]) -> tuple[str, ...]:
        """Return the subjects of these requests that the editor was trained on, each once."""
        known = {bytes(mark) for mark in self.subjects}
        names = dict.fromkeys(request.subject for request in requests)
        return tuple(name for name in names if bytes(subject_marks([name])[0]) in known)


def subject_marks(subjects: Iterable[str]) -> Array:
    """Return 8 bytes of the SHA-256 of each subject, sorted, (n, 8) uint8.

    Letter case and spaces at the ends do not count.
    """
    import hashlib

    marks = {
        hashlib.sha256(name.strip().casefold().encode()).digest()[:_MARK_BYTES] for name in subjects
    }
    flat = np.frombuffer(b"".join(sorted(marks)), np.uint8)
    return flat.reshape(-1, _MARK_BYTES)


def stored_tensors(tensors: Mapping[str, Array], subjects: Array) -> dict[str, Array]:
    """Return every array by its name in the file."""
    named = {TENSORS + name: array for name, array in tensors.items()}
    return named | ({SUBJECTS: subjects} if len(subjects) else {})


def _checked(name: str, array: Array) -> Array:
    """Return a tensor as it is kept: contiguous, little-endian, read-only."""
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise PatchFormatError(
            f"An editor's tensor cannot be named {name[:80]!r}. Use letters, digits, _, - and "
            "dots between words.",
            where="tensors",
        )
    made = np.array(array, order="C")  # a copy that nobody else can write to
    made = made.astype(made.dtype.newbyteorder("<"), copy=False)
    if made.dtype.str not in ELEMENTS:
        raise PatchFormatError(
            f"The editor's tensor {name} is {made.dtype}. Store float16, float32, float64, int64 "
            "or uint8.",
            where=name,
        )
    if not made.size or (made.dtype.kind == "f" and not np.isfinite(made).all()):
        what = "empty" if not made.size else "not finite"
        raise PatchFormatError(f"The editor's tensor {name} is {what}.", where=name)
    made.flags.writeable = False
    return made
