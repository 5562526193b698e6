"""A patch's header as text: RFC 8785 canonical JSON under the one metadata key ``editkit``.

Read strictly: unknown keys, wrong types, values that are not written the canonical way, and digests
that do not match are refused. Fields that hold their default are left out of the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs
import cattrs.errors

from editkit_core.errors import EditkitError, PatchDigestError, PatchFormatError, PatchVersionError
from editkit_core.params import converter, format_exceptions
from editkit_core.patch import digests
from editkit_core.patch.container import parse_json, refusal
from editkit_core.patch.header import SPEC_VERSION, PatchHeader
from editkit_core.patch.strict import MAX_METADATA_VALUES

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")


def seal(header: PatchHeader) -> PatchHeader:
    """Return the header with its id, content digest and checksum filled in.

    Raises:
        PatchFormatError: A value cannot be stored; the message says which.
    """
    digest = digests.content_digest(to_json(header))
    named = attrs.evolve(header, id=digests.patch_id(digest), content_digest=digest)
    return attrs.evolve(named, checksum=digests.checksum(to_json(named)))


def encode_header(header: PatchHeader) -> str:
    """Return the canonical text of a header.

    Raises:
        PatchFormatError: It holds more values than a reader would accept.
    """
    fields = to_json(header)
    if _has_too_many(fields):
        raise PatchFormatError(
            f"The patch's metadata holds more than {MAX_METADATA_VALUES} values. Split the edits "
            "over several patches, or leave out probes.",
            where="metadata",
        )
    return digests.canonical(fields, "metadata").decode()


def decode_header(text: str, where: str) -> PatchHeader:
    """Read a header's text.

    Args:
        text: The value of the key ``editkit``.
        where: The file, for messages.

    Raises:
        PatchVersionError: It is of another format version.
        PatchFormatError: It is malformed.
        PatchDigestError: A digest does not match.
    """
    fields = parse_json(text.encode(), f"{where}, metadata")
    if not isinstance(fields, dict):
        raise refusal(where, "metadata", "must be an object")
    _check_version(fields.get("spec_version"), where)
    if _has_too_many(fields):
        raise refusal(where, "metadata", f"holds more than {MAX_METADATA_VALUES} values")
    if digests.canonical(fields, f"{where}, metadata") != text.encode():
        raise refusal(where, "metadata", "is not canonical JSON (RFC 8785)")
    header = _structure(fields, where)
    if to_json(header) != fields:
        raise refusal(where, "metadata", "spells out default values, which editkit never does")
    _check_digests(header, fields, where)
    return header


def to_json(value: Any) -> Any:  # Any: attrs values in, JSON values out
    """Return plain JSON values; fields that hold their default are left out."""
    if isinstance(value, PatchHeader):
        return {"spec_version": value.spec_version, "seed": str(value.seed), **_fields(value)}
    if attrs.has(type(value)):
        return _fields(value)
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return value


def _fields(value: Any) -> dict[str, Any]:  # Any: any attrs instance
    made = {}
    for field in attrs.fields(type(value)):
        item, default = getattr(value, field.name), field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # Factory is a class at run time
            default = default.factory()
        if item != default and not (field.name == "seed" and isinstance(value, PatchHeader)):
            made[field.name] = to_json(item)
    return made


def _has_too_many(fields: dict[str, Any]) -> bool:  # Any: JSON values
    """Say whether metadata holds so many values that checking them would take seconds."""
    waiting: list[Any] = [fields]  # Any: JSON values
    count = 0
    while waiting and count <= MAX_METADATA_VALUES:
        value = waiting.pop()
        if isinstance(value, dict | list):
            count += len(value)
            waiting += value.values() if isinstance(value, dict) else value
    return count > MAX_METADATA_VALUES


def _check_version(version: object, where: str) -> None:
    if type(version) is not int:
        raise refusal(where, "spec_version", f"must be a whole number, got {version!r}")
    if version != SPEC_VERSION:
        raise PatchVersionError(
            f"{where}: patch format version {version}, this editkit reads version {SPEC_VERSION}. "
            "Upgrade editkit-core, or make the patch again with this one.",
            expected=SPEC_VERSION,
            found=version,
        )


def _structure(fields: dict[str, Any], where: str) -> PatchHeader:  # Any: JSON values
    seed = fields.get("seed")
    if not isinstance(seed, str) or not _WHOLE.fullmatch(seed):
        raise refusal(where, "seed", f"must be a whole number written as text, got {seed!r:.80}")
    try:
        header: PatchHeader = converter().structure({**fields, "seed": int(seed)}, PatchHeader)
    except cattrs.errors.BaseValidationError as error:
        problems = "; ".join(format_exceptions(error)[:5])[:400]
        raise PatchFormatError(
            f"{where}: metadata does not fit: {problems}.", where=where
        ) from None
    except (EditkitError, TypeError, ValueError) as error:
        raise PatchFormatError(
            f"{where}: metadata does not fit: {str(error)[:400]}", where=where
        ) from None
    if not header.entries:
        raise refusal(where, "entries", "must hold at least one entry")
    return header


def _check_digests(header: PatchHeader, fields: dict[str, Any], where: str) -> None:  # Any: JSON
    for name, digest in header.tensors.items():
        if not _SHA256.fullmatch(digest):
            raise refusal(where, f"tensors.{name[:60]}", "is not a SHA-256 digest")
    _match("content_digest", header.content_digest, digests.content_digest(fields), where)
    _match("id", header.id, digests.patch_id(header.content_digest), where)
    _match("checksum", header.checksum, digests.checksum(fields), where)


def _match(part: str, stated: str, computed: str, where: str) -> None:
    if stated != computed:
        raise PatchDigestError(
            f"{where}: {part} says {stated[:70]!r}, the file gives {computed!r}. It was changed "
            "after it was written; get it again from its source.",
            where=part,
            expected=stated,
            found=computed,
        )
