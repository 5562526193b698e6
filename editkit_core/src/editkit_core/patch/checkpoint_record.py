"""``editkit.json``: what was done to a checkpoint folder, and what undoes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import cattrs.errors

from editkit_core.errors import InputNotFoundError, PatchFormatError
from editkit_core.params import converter, format_exceptions
from editkit_core.patch.container import parse_json
from editkit_core.patch.digests import canonical
from editkit_core.patch.header_codec import to_json

RECORD = "editkit.json"
PRISTINE = "editkit-pristine.safetensors"
SPEC = "editkit.folder/1"


@attrs.frozen(kw_only=True)
class PatchRef:
    """The applied patch.

    Attributes:
        id: Its id.
        name: Its name for people.
        content_digest: Digest of its content.
        file: The copy of it in the folder.
        sha256: Digest of that file.
    """

    id: str
    name: str = ""
    content_digest: str
    file: str
    sha256: str


@attrs.frozen(kw_only=True)
class TensorChange:
    """A changed tensor.

    Attributes:
        file: The weights file that holds it.
        pristine_sha256: Digest of its bytes in the source.
        patched_sha256: Digest of its bytes here.
    """

    file: str
    pristine_sha256: str
    patched_sha256: str


@attrs.frozen(kw_only=True)
class FileChange:
    """A rewritten weights file.

    Attributes:
        source_sha256: Digest of the source's file.
        patched_sha256: Digest of the file here.
    """

    source_sha256: str
    patched_sha256: str


@attrs.frozen(kw_only=True)
class FolderRecord:
    """The content of ``editkit.json``.

    Attributes:
        spec: Version of this record.
        base: Name of the model the patch was made for.
        source: Last part of the source folder's name.
        patch: The applied patch.
        pristine_sha256: Digest of the file that holds the tensors as they were.
        tensors: The changed tensors, by stored name.
        weights: The rewritten files, by name.
    """

    spec: str
    base: str
    source: str
    patch: PatchRef
    pristine_sha256: str
    tensors: Mapping[str, TensorChange]
    weights: Mapping[str, FileChange]

    def encode(self) -> bytes:
        """Return the canonical JSON text."""
        return canonical(to_json(self), RECORD)


def read_record(folder: Path) -> FolderRecord:
    """Read a folder's ``editkit.json``.

    Raises:
        InputNotFoundError: The folder has none, so no patch was applied to it.
        PatchFormatError: It is malformed.
    """
    path = folder / RECORD
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputNotFoundError(
            f"{folder} has no {RECORD} that can be read: editkit applied no patch to this folder. "
            "Give the folder that `editkit patch apply` wrote.",
            path=str(folder),
        ) from error
    try:
        record: FolderRecord = converter().structure(parse_json(text, str(path)), FolderRecord)
    except (cattrs.errors.BaseValidationError, TypeError, ValueError, AttributeError) as error:
        problems = [str(error)]
        if isinstance(error, cattrs.errors.BaseValidationError):
            problems = format_exceptions(error)
        raise PatchFormatError(
            f"{path} is damaged: {'; '.join(problems)[:400]}. Apply the patch again to the source.",
            where=str(path),
        ) from None
    files = [record.patch.file, *record.weights, *(t.file for t in record.tensors.values())]
    if record.spec != SPEC or any(file != Path(file).name or not file for file in files):
        raise PatchFormatError(
            f"{path} is damaged or of another version ({record.spec:.40}). Apply the patch again "
            "to the source.",
            where=str(path),
        )
    return record
