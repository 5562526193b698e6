"""``stack.json``: what a stack's folder says, as values and as text.

The text is indented JSON with sorted keys, so two versions compare line by line; ``checksum`` is
the digest of all the rest. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import attrs
import cattrs.errors

from editkit_core.errors import EditkitError, PatchFormatError, StackDamagedError, StackError
from editkit_core.params import converter, format_exceptions
from editkit_core.patch.container import parse_json
from editkit_core.patch.digests import canonical
from editkit_core.patch.header_codec import to_json
from editkit_core.patch.identity import public_name
from editkit_core.stack.state import StackState

SPEC = "editkit.stack/1"
DOCUMENT = "stack.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@attrs.frozen(kw_only=True)
class BaseRecord:
    """The checkpoint a stack stands on.

    Attributes:
        model: What to load it by: a packaged name, a hub id, or an absolute folder.
        revision: Hub revision, or None.
        config_digest: Digest of its configuration.
        digest: Digest of its weights files' names and digests.
        files: Digest of each weights file, by name.
    """

    model: str
    revision: str | None = None
    config_digest: str
    digest: str
    files: Mapping[str, str]

    @property
    def public(self) -> str:
        """The model's name without the folders of this machine."""
        return public_name(self.model)

    @property
    def folder(self) -> Path | None:
        """The folder, when the model is named by one."""
        return Path(self.model) if Path(self.model).is_absolute() else None


@attrs.frozen(kw_only=True)
class TensorResult:
    """A tensor of the base and what the merged patches make of it.

    Attributes:
        pristine_sha256: Digest of its bytes in the base.
        sha256: Digest of its bytes with the patches.
        patches: Ids of the patches that are merged into it, sorted.
    """

    pristine_sha256: str
    sha256: str
    patches: tuple[str, ...]


@attrs.frozen(kw_only=True)
class StackDocument:
    """One committed version of a stack.

    Attributes:
        spec: Version of this format.
        generation: How many changes were committed before and with this one; 0 for a new stack.
        base: What it stands on.
        state: The patches.
        tensors: What is merged into the base, by stored name.
        action: What the change was, for people.
        time: When it was committed, UTC, ISO 8601.
    """

    spec: str = SPEC
    generation: int
    base: BaseRecord
    state: StackState
    tensors: Mapping[str, TensorResult]
    action: str
    time: str


def encode(document: StackDocument) -> bytes:
    """Return the text of ``stack.json``."""
    fields = {"spec": document.spec, **to_json(document)}
    sealed = {**fields, "checksum": _checksum(fields)}
    text = json.dumps(sealed, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode()


def decode(text: bytes, path: Path) -> StackDocument:
    """Read the text of ``stack.json`` strictly.

    Args:
        text: The bytes.
        path: Where they come from, for messages.

    Raises:
        StackDamagedError: It is not what editkit wrote.
        StackError: It is of another version.
    """
    try:
        fields = parse_json(text, path.name)
    except PatchFormatError as error:
        raise damaged(path, error.message) from None
    if not isinstance(fields, dict):
        raise damaged(path, "it holds no object")
    if fields.get("spec") != SPEC:
        raise StackError(
            f"{path} has the version {fields.get('spec')!r:.60}, this editkit reads {SPEC!r}. "
            "Install the editkit-core that wrote it.",
            path=str(path),
            expected=SPEC,
            found=fields.get("spec"),
        )
    stated = fields.pop("checksum", None)
    found = _checksum(fields)
    if stated != found:
        raise damaged(path, f"its checksum says {stated!r:.70}, the rest gives {found}")
    return _structure(fields, path)


def damaged(path: Path, why: str) -> StackDamagedError:
    """Return the error for a document that does not hold."""
    return StackDamagedError(
        f"{path} cannot be used: {why.rstrip('.')}. It was changed from outside or is damaged. Put "
        "it back from a backup; each file of the folder history is a whole earlier version of "
        f"{DOCUMENT}.",
        path=str(path),
    )


def now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _checksum(fields: Mapping[str, Any]) -> str:  # Any: JSON values
    return hashlib.sha256(canonical(fields, DOCUMENT)).hexdigest()


def _structure(fields: Mapping[str, Any], path: Path) -> StackDocument:  # Any: JSON values
    try:
        document: StackDocument = converter().structure(fields, StackDocument)
    except cattrs.errors.BaseValidationError as error:
        raise damaged(path, "; ".join(format_exceptions(error)[:5])[:400]) from None
    except (EditkitError, TypeError, ValueError) as error:
        raise damaged(path, str(error)[:400]) from None
    for entry in document.state.entries:
        if not _SHA256.fullmatch(entry.file_sha256):
            raise damaged(path, f"{entry.label} has the file digest {entry.file_sha256!r:.80}")
    return document
