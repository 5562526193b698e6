"""The patch files of a stack: each under the digest of its bytes, written once, never changed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from editkit_core.atomic import sync_folder, write_file
from editkit_core.errors import InputNotFoundError, StackDamagedError, WriteFailedError
from editkit_core.patch.format import Patch
from editkit_core.patch.io import SUFFIX, load, to_pieces
from editkit_core.patch.kinds import Kinds
from editkit_core.stack.state import EntryState

FOLDER = "objects"
_NAME = re.compile(rf"[0-9a-f]{{64}}{re.escape(SUFFIX)}")
_CHUNK_BYTES = 16 * 1024 * 1024


class Objects:
    """The folder ``objects``: ``ab/<sha256>.editkit.safetensors``.

    Args:
        folder: The stack's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def path(self, sha256: str) -> Path:
        """Return where the file with this digest is kept."""
        return self.folder / sha256[:2] / f"{sha256}{SUFFIX}"

    def has(self, sha256: str) -> bool:
        """Say whether there is a file under this digest; it is not read."""
        return self.path(sha256).is_file()

    def write(self, sha256: str, patch: Patch) -> None:
        """Keep a patch file; one that is there and sound stays as it is.

        Raises:
            WriteFailedError: Writing failed; nothing was left.
        """
        path = self.path(sha256)
        if path.is_file() and file_digest(path) == sha256:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteFailedError(
                f"Cannot make the folder {path.parent}: {error.strerror or error}. Check that the "
                "disk has space and the stack's folder may be written to.",
                path=str(path.parent),
                errno=error.errno,
            ) from error
        sync_folder(self.folder)
        write_file(path, to_pieces(patch), force=True)

    def read(self, entry: EntryState, kinds: Kinds | None) -> Patch:
        """Read a patch strictly and check that it is the one the stack names.

        Raises:
            StackDamagedError: The file is missing or another one.
            PatchError: It holds something that is refused, for example an unknown kind.
        """
        path = self.path(entry.file_sha256)
        try:
            found = file_digest(path)
            if found != entry.file_sha256:
                raise _damaged(path, entry, f"has the digest {found}: it was changed")
            patch = load(path, kinds=kinds)
        except (FileNotFoundError, InputNotFoundError):
            raise _damaged(path, entry, "is missing") from None
        except OSError as error:
            raise _damaged(path, entry, f"cannot be read ({error.strerror or error})") from error
        if (patch.header.id, patch.header.content_digest) != (entry.id, entry.content_digest):
            raise _damaged(path, entry, f"holds the patch {patch.header.id}")
        return patch

    def stored(self) -> Iterator[tuple[str, Path]]:
        """Yield the digest and path of every patch file, by name alone."""
        for path in sorted(self.folder.glob(f"??/*{SUFFIX}")):
            sha256 = path.name.removesuffix(SUFFIX)
            if _NAME.fullmatch(path.name) and path.parent.name == sha256[:2]:
                yield sha256, path


def patch_digest(patch: Patch) -> str:
    """Return the digest of the file that a patch is saved as."""
    digest = hashlib.sha256()
    for piece in to_pieces(patch):
        digest.update(piece)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _damaged(path: Path, entry: EntryState, what: str) -> StackDamagedError:
    return StackDamagedError(
        f"The patch file {path} of {entry.label} {what}. Copy the original patch file there, or "
        "take the patch out with `editkit stack remove`.",
        path=str(path),
        patch=entry.id,
        sha256=entry.file_sha256,
    )
